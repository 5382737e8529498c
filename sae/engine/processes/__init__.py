"""Several processes as one run, on one machine or on many: process 0 decides and writes, the others follow.

`jax.distributed` joins the devices of all processes and notices when a process is gone. Process 0 alone reads and
writes the run's folder, which the other processes need not see; each process loads the data itself. With one process,
every function here is a no-op.

    joining     a process joins the others, once, before it uses a device
    messages    what the processes say to each other beside arrays of training
    peers       how a process notices that another one failed or is gone
    ending      the end of a process, which the others must understand
    listener    the small program that explains what jax's C++ side prints
"""

from sae.engine.processes.ending import PARTING, drop, end, lost
from sae.engine.processes.joining import joined, start
from sae.engine.processes.messages import count, decided, lead, meet, note, noted, of_lead, same, shared, spread
from sae.engine.processes.peers import PeerLostError, watch

__all__ = [
    "PARTING",
    "PeerLostError",
    "count",
    "decided",
    "drop",
    "end",
    "joined",
    "lead",
    "lost",
    "meet",
    "note",
    "noted",
    "of_lead",
    "same",
    "shared",
    "spread",
    "start",
    "watch",
]
