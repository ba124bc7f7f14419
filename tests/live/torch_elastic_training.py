"""A data-parallel training that goes on with whatever workers there are; run by ``torchrun``.

Fits a linear model to noiseless data until a file says that it is enough; arguments: that file, and
one for the sizes that it had so far. One worker of each node
saves the state; after every change of workers all go on from the newest that any of them has. Its
loss is what is left of the error; its message tells the numbers of workers it had, in order.
"""

import json
import os
import pathlib
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

workdir = pathlib.Path(os.environ["HARVESTER_WORKDIR"])
saved = workdir / "checkpoint" / "state.pt"
finish, seen = map(pathlib.Path, sys.argv[1:])

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
saves = os.environ["LOCAL_RANK"] == "0"
speaks = saves and os.environ["NODE_RANK"] == "0"

torch.manual_seed(1)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

state = {"step": 0, "sizes": [], "model": model.state_dict()}
if saved.exists():
    state = torch.load(saved)
steps = [0] * size
dist.all_gather_object(steps, state["step"])
newest = [state]
dist.broadcast_object_list(newest, src=steps.index(max(steps)))
state = newest[0]
model.load_state_dict(state["model"])
sizes, step = [*state["sizes"], size], state["step"]


def save() -> None:
    saved.parent.mkdir(exist_ok=True)
    fresh = saved.with_suffix(".new")
    torch.save({"step": step, "sizes": sizes, "model": model.state_dict()}, fresh)
    fresh.replace(saved)


weights = torch.tensor([[1.0], [-2.0], [3.0], [0.5]])
data = torch.Generator().manual_seed(100 + rank)
while True:
    inputs = torch.randn(64, 4, generator=data)
    loss = torch.nn.functional.mse_loss(model(inputs), inputs @ weights)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
    enough = torch.tensor(int(finish.exists() and step >= 200))
    dist.all_reduce(enough, dist.ReduceOp.MIN)
    if saves and step % 10 == 0:
        save()
    if speaks and step % 10 == 0:
        seen.write_text(" ".join(map(str, sizes)))
    if enough:
        break

if speaks:
    message = " ".join(map(str, sizes))
    (workdir / "output.json").write_text(json.dumps({"loss": loss.item(), "message": message}))
dist.barrier()
dist.destroy_process_group()
