"""Training in two processes is training in one."""

import csv
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from process_pair import ProcessPair
from torch import nn

from sepc_zoo.cli import main
from sepc_zoo.data import collate, write_shapes
from sepc_zoo.methods.losses import mean_over_processes
from sepc_zoo.models.necks.sepc import IntegratedBatchNorm
from sepc_zoo.ops.distributed import sum_over_processes
from sepc_zoo.training import trainer as engine
from sepc_zoo.training.checkpoint import STATE
from sepc_zoo.training.options import TrainOptions
from sepc_zoo.training.recipes import set_train_mode
from sepc_zoo.training.resilience.faults import SKIPPED_FOLDER
from sepc_zoo.training.setup import prepare
from sepc_zoo.training.summary import describe
from sepc_zoo.training.trainer import accumulate_gradient, train

METHODS = ("retinanet", "freeanchor", "fsaf", "atss", "fcos")
TRAINED = (*METHODS, "gfl")  # whose counts are known only after the forward pass
STEPS = 20
SHARES = (3, 1)  # images of each process

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def pair():
    processes = ProcessPair()
    yield processes
    processes.close()


def options(data, output, **changes):
    """Images differ in scale, but are padded to one size: so no batch is padded otherwise."""
    small = {
        "model": "retinanet_test_efficientnet_pconv",
        "model_kwargs": {"channels": 16, "neck": {"blocks": 1}},
        "image_size": (64, 64),
        "scale": (0.6, 1.0),
        "max_steps": STEPS,
        "batch_size": 2,
        "freeze_bn": True,
        "workers": 0,
        "cpu": True,
        "log_with": (),
        "log_interval": 1,
        "val_interval": 100,
    }
    return TrainOptions(**small | {"data": str(data), "output": str(output)} | changes)


@contextmanager
def exactly():
    """Sums in another order differ in float64 no more than in the last digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train_exactly(options):
    with exactly(), pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        train(options)


def draw_nothing(patch):
    for name in ("draw_samples", "plot_curves"):
        patch.setattr(engine, name, lambda *_: None)


def read_losses(run):
    with (Path(run) / "log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    return [{k: float(v) for k, v in row.items() if k.startswith("loss")} for row in rows]


def read_state(run, part):
    return torch.load(Path(run) / STATE / "run.pt", weights_only=True)[part]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        *(
            f"{method}_test_efficientnet_{neck}"
            for method in TRAINED
            for neck in ("pconv", "ibn_pconv")
        ),
        "retinanet_test_efficientnet_sepc",
    ],
)
def test_two_processes_learn_what_one_does_with_the_same_images(model, shapes, tmp_path, pair):
    train_exactly(options(shapes, tmp_path / "one", model=model, batch_size=4))
    pair(train_exactly, options(shapes, tmp_path / "two", model=model, batch_size=2))
    one, two = (read_losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == STEPS
    assert two == [pytest.approx(row, rel=1e-10) for row in one]
    one, two = (read_state(tmp_path / name, "model") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


def gradient(run, batches):
    """The gradient of a step by parameter, and its loss terms."""
    run.optimizer.zero_grad()
    losses = accumulate_gradient(run, batches)
    parameters = run.detector.named_parameters()
    return {n: p.grad.clone() for n, p in parameters}, {n: v.item() for n, v in losses.items()}


def batches_of(run, groups, empty):
    """The batches of these images of the data set; those in ``empty`` are without boxes."""
    samples = {i: run.train_loader.loader.dataset[i] for group in groups for i in group}
    for i in set(empty) & set(samples):
        for name in ("boxes", "labels", "iscrowd", "area"):
            samples[i][1][name] = samples[i][1][name][:0]
    weights = run.detector.config.weights
    batches = (collate([samples[i] for i in group]) for group in groups)
    return [batch.normalized(weights.mean, weights.std) for batch in batches]


def ready(options):
    run = prepare(options)
    set_train_mode(run.detector, freeze_bn=True)
    return run


@pytest.mark.parametrize("empty", [(), (0, 1), (0, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_accumulated_batches_give_the_gradient_of_one_large_batch(method, empty, shapes, tmp_path):
    with exactly():
        run = ready(options(shapes, tmp_path, model=f"{method}_test_efficientnet_pconv"))
        whole, losses = gradient(run, batches_of(run, [range(4)], empty))
        for groups in ([(0, 1), (2, 3)], [(0,), (1, 2, 3)]):
            parts, losses_of_parts = gradient(run, batches_of(run, groups, empty))
            torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
            assert losses_of_parts == pytest.approx(losses, rel=1e-10)


def gradient_of_share(options, groups, empty):
    with exactly():
        run = ready(options)
        batches = batches_of(run, groups[PartialState().process_index], empty)
        gradients, losses = gradient(run, batches)
    return {name: value.numpy() for name, value in gradients.items()}, losses


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_in_two_processes_gives_it_too(method, shapes, tmp_path, pair):
    asked = options(shapes, tmp_path, model=f"{method}_test_efficientnet_pconv")
    shares, empty = ([(0,), (1,)], [(2,), (3,)]), (1, 2)
    (parts, some), (same, others) = pair(gradient_of_share, asked, shares, empty)
    with exactly():
        run = ready(asked)
        whole, losses = gradient(run, batches_of(run, [range(4)], empty))
    for name, value in whole.items():
        torch.testing.assert_close(torch.from_numpy(parts[name]), value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(parts[name], same[name], rtol=0, atol=0)
    assert {k: (some[k] + others[k]) / 2 for k in some} == pytest.approx(losses, rel=1e-10)


def pyramids():
    """What two processes see of a pyramid, and factors for a loss of it."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(SHARES), 3, side, side) for side in (8, 4, 2)]
    return [
        [torch.randn(shape, generator=generator).double() * 2 + 1 for shape in shapes]
        for _ in range(2)
    ]


def normalised(norm, pyramid, factors):
    """Output, gradient of the input and of the parameters for one loss."""
    pyramid = [x.clone().requires_grad_() for x in pyramid]
    out = norm(pyramid)
    sum((y.double() * factor).sum() for y, factor in zip(out, factors, strict=True)).backward()
    return out, [x.grad for x in pyramid], [p.grad for p in norm.parameters()]


def new_norm(sync):
    norm = IntegratedBatchNorm(3)
    norm.sync = sync
    nn.init.uniform_(norm.norm.weight, 0.5, 2.0, torch.Generator().manual_seed(1))
    nn.init.uniform_(norm.norm.bias, -1.0, 1.0, torch.Generator().manual_seed(2))
    return norm.train()


def compare_norms(dtype, tolerance):
    """Of all images in this process with those of a share in each."""
    rank = PartialState(cpu=True).process_index
    pyramid, factors = ([x.to(dtype) for x in parts] for parts in pyramids())
    share = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
    plain, synced = (new_norm(sync) for sync in (False, True))
    if dtype == torch.float64:
        plain, synced = plain.double(), synced.double()
    out, grads, weight_grads = normalised(plain, pyramid, factors)
    ours, our_grads, our_weight_grads = normalised(
        synced, [x[share] for x in pyramid], [x[share] for x in factors]
    )
    assert {y.dtype for y in ours} == {dtype}
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(ours, [y[share] for y in out], **close)
    torch.testing.assert_close(our_grads, [x[share] for x in grads], **close)
    summed = [sum_over_processes(grad) for grad in our_weight_grads]
    torch.testing.assert_close(summed, weight_grads, **close)
    statistics = [norm.state_dict() for norm in (synced, plain)]
    torch.testing.assert_close(*statistics, rtol=min(tolerance, 1e-5), atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.03)])
def test_synced_batch_norm_is_that_of_the_joined_batch(dtype, tolerance, pair):
    pair(compare_norms, dtype, tolerance)


def check_sums():
    rank = PartialState(cpu=True).process_index
    x = torch.arange(4.0).double() + rank
    x.requires_grad_()
    (sum_over_processes(x).square() * (rank + 1)).sum().backward()
    total = 2 * torch.arange(4.0).double() + 1
    torch.testing.assert_close(x.grad, (1 + 2) * 2 * total)  # every process's loss depends on it
    assert mean_over_processes(torch.tensor(3 + rank)).item() == 3.5


@pytest.mark.slow
def test_a_sum_over_processes_hands_back_the_gradients_of_all(pair):
    pair(check_sums)


def descriptions(*many):
    return [describe(prepare(options)) for options in many]


@pytest.mark.slow
def test_what_follows_from_the_number_of_processes_is_told(shapes, tmp_path, pair):
    def asked(batch_size, **changes):
        model = "retinanet_r18_ibn_pconv"
        return options(shapes, tmp_path, model=model, batch_size=batch_size, **changes)

    few, enough, forced, refused = pair(
        descriptions,
        asked(2, grad_accum_steps=2),
        asked(4),
        asked(4, sync_bn=True),
        asked(2, sync_bn=False),
    )[0]
    assert few["step"] == "8 images: 2 x 2 processes x 2 accumulated"
    assert "rate 0.0025 (0.01 for 32 scaled)" in few["learning"]
    assert few["batch norm"] == "over all processes, which hold 2 images each"
    assert enough["batch norm"] == "of each process alone, which hold 4 images each"
    assert forced["batch norm"].startswith("over all processes")
    assert refused["batch norm"].startswith("of each process alone")


def images_shown(options, epochs):
    """The ids that this process sees in each epoch."""
    run = prepare(options)
    return [
        [
            target["image_id"]
            for batch in run.train_loader.batches(epoch)
            for target in batch.targets
        ]
        for epoch in range(epochs)
    ]


@pytest.mark.slow
def test_images_that_make_no_whole_step_wait_for_another_epoch(tmp_path, pair):
    data = write_shapes(tmp_path / "data", train=7, val=1, size=(64, 64))
    first, second = pair(images_shown, options(data, tmp_path / "run"), 4)
    assert [len(ids) for ids in first + second] == [2] * 8
    epochs = [set(a) | set(b) for a, b in zip(first, second, strict=True)]
    assert [len(ids) for ids in epochs] == [4] * 4  # no image twice
    assert set().union(*epochs) == set(range(1, 8))


@pytest.mark.slow
def test_images_too_few_for_a_step_are_all_shown_and_some_repeated(tmp_path, pair):
    data = write_shapes(tmp_path / "data", train=3, val=1, size=(64, 64))
    for first, second in zip(*pair(images_shown, options(data, tmp_path / "run"), 3), strict=True):
        assert len(first) == len(second) == 2
        assert set(first + second) == {1, 2, 3}


def main_at_step(arguments, rank, step):
    """Exit status and error output of a command; one process gets SIGTERM during a step."""
    terminate = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as errors:
        draw_nothing(patch)
        before_step(patch, rank, step, terminate)
        return main(arguments), errors.getvalue()


def before_step(patch, rank, step, act):
    """Let ``act(run, batches)`` happen in one process as a step begins."""
    train_step = engine.train_step

    def acting(run, batches):
        if run.progress.step + 1 == step and PartialState().process_index == rank:
            act(run, batches)
        return train_step(run, batches)

    patch.setattr(engine, "train_step", acting)


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_saved(shapes, tmp_path, pair):
    flags = [
        "--data",
        shapes,
        "--model",
        "retinanet_test_efficientnet_pconv",
        "--image-size",
        64,
        64,
        "--cpu",
    ]
    flags += ["--model-kwargs", "channels=16", "neck.blocks=1", "--batch-size", 2, "--workers", 0]
    flags += ["--max-steps", 4, "--log-with"]

    def command(run, *more):
        return ["train", *map(str, flags), "--output", str(run), *more]

    run, whole = tmp_path / "run", tmp_path / "whole"
    (status, told), (other, silent) = pair(main_at_step, command(run), 1, 3)
    assert (status, other) == (143, 143)
    assert told.count(f"saved after step 3; go on with --resume {run}") == 1
    assert silent == ""
    resume = ["train", "--resume", str(run)]
    for arguments in (resume, command(whole)):
        assert [done for done, _ in pair(main_at_step, arguments, 1, None)] == [0, 0]
    for part in ("model", "optimizer"):
        torch.testing.assert_close(read_state(run, part), read_state(whole, part), rtol=0, atol=0)


def weights_by_step(options, rank, step, act: Callable | None):
    """The sum of all weights after each step, with ``act`` in one process at one of them."""
    sums = []
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        if act:
            before_step(patch, rank, step, act)
        train_step = engine.train_step

        def noting(run, batches):
            train_step(run, batches)
            sums.append(sum(p.double().sum().item() for p in run.detector.parameters()))

        patch.setattr(engine, "train_step", noting)
        train(options)
    return sums


def spoil(_, batches):
    batches[0].images[0, 0, 0] = math.nan


@pytest.mark.slow
def test_a_step_that_one_process_cannot_make_is_made_by_none(shapes, tmp_path, pair):
    first, second = pair(weights_by_step, options(shapes, tmp_path, max_steps=4), 1, 2, spoil)
    assert first == second
    assert first[0] == first[1]
    assert len(set(first)) == len(first) - 1 == 3
    names = {path.name for path in (tmp_path / SKIPPED_FOLDER / "step_000002").iterdir()}
    assert {f"process_{rank}_batch_0.safetensors" for rank in range(2)} <= names


def kill_workers(*_):
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        worker.kill()


@pytest.mark.slow
def test_a_worker_that_dies_in_one_process_changes_nothing(tmp_path, pair):
    data = write_shapes(tmp_path / "data", train=24, val=1, size=(64, 64))
    asked = {"max_steps": 8, "workers": 1}
    whole, _ = pair(weights_by_step, options(data, tmp_path / "whole", **asked), 1, 1, None)
    runs = pair(weights_by_step, options(data, tmp_path / "run", **asked), 1, 1, kill_workers)
    assert runs == [whole, whole]
