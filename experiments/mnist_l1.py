"""ReLU latents, L1 penalty, on MNIST from TensorFlow Datasets: what are the parts of a digit?

Without TensorFlow: the four idx files are downloaded, or taken from where you put them (the error says where).

    sae run experiments/mnist_l1.py
    sae run experiments/mnist_l1.py --data.name fashion_mnist --name fashion_mnist_l1
"""

from sae import Adam, ElasticNet, Experiment, Relu, Resample, Tfds, UnitNorm

experiment = Experiment(
    name="mnist_l1",
    data=Tfds(name="mnist"),
    d_sae=1_024,
    activation=Relu(),
    penalty=ElasticNet(l1=0.5, warmup_steps=200),
    constraint=UnitNorm(),
    revival=Resample(every=1_000, times=2),
    dead_after=200_000,
    optimizer=Adam(lr=1e-3, warmup_steps=200, decay_steps=1_000),
    batch_size=1024,
    n_steps=4_000,
)
