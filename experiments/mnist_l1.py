"""With ReLU latents and an L1 penalty on MNIST, what are the parts of a digit?

MNIST comes from TensorFlow Datasets, but TensorFlow is not needed: the four idx files are downloaded, or read from the
folder that the error message names.

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
