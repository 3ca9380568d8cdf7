"""One rank of the tests of distributed training, started by torchrun: `distributed_worker.py FOLDER BUNDLE VALUES`."""

import itertools
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "templates"))

from scripts import distributed
from scripts.losses import SparseDiceCELoss


def gradients(samples: Path, out: Path) -> None:
    """Value and gradients, averaged over the ranks, of a small network on this rank's share of some samples; for each
    way of the loss."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    data = torch.load(samples, weights_only=True)
    found = []
    for unknown, batch in itertools.product((False, True), repeat=2):
        network = torch.nn.Conv3d(1, 3, 3, padding=1, dtype=torch.float64)
        network.load_state_dict(data["network"])
        shared = torch.nn.parallel.DistributedDataParallel(network)
        loss_function = SparseDiceCELoss(batch, smooth_nr=0.0, smooth_dr=1e-8, unknown=unknown, shared=True)
        label = data["partly known" if unknown else "label"]
        loss = loss_function(shared(data["image"][rank::size]), label[rank::size])
        loss.backward()
        mean = loss.detach() / size
        torch.distributed.all_reduce(mean)
        found.append({"loss": mean, **{name: parameter.grad for name, parameter in network.named_parameters()}})
    if rank == 0:
        torch.save(found, out)


def train(bundle: Path, out: Path, settings: str) -> None:
    """The bundle's training under torchrun; every rank then says what its rules know."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_meta(bundle / "configs" / "metadata.json")
    parser.read_config([bundle / "configs" / "train.json", bundle / "configs" / "multi_gpu_train.json"])
    parser["bundle_root"] = str(bundle)
    for key, value in json.loads(settings).items():
        parser[key] = value
    parser.parse()
    torch.manual_seed(parser.get_parsed_content("seed"))
    trainer = parser.get_parsed_content("train#trainer")
    trainer.run()
    rank = torch.distributed.get_rank()
    rules = parser.get_parsed_content("train#rules").state_dict()
    sampler = parser.get_parsed_content("train#sampler")
    (out / f"rank_{rank}.json").write_text(json.dumps({"rules": rules, "batch": len(next(iter(sampler)))}))
    torch.save(parser.get_parsed_content("network_def").state_dict(), out / f"rank_{rank}.pt")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    distributed.start("cpu")
    gradients(folder / "samples.pt", folder / "out.pt")
    train(Path(sys.argv[2]), folder, sys.argv[3])
    torch.distributed.destroy_process_group()
