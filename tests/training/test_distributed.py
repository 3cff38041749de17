"""Training in two processes gives the numbers of one."""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
import tiny_runs
import torch
from accelerate import PartialState
from gradients_of_runs import batches_of, exactly, gradient, ready
from made_up_models import finds_everywhere
from process_pair import ProcessPair
from tiny_runs import SMALL, assert_same_weights, before_step, draw_nothing, read_log, state_of
from torch import nn
from torch.distributed import distributed_c10d

import sepc_zoo
from sepc_zoo.cli import main
from sepc_zoo.cli.arguments import command_line
from sepc_zoo.data import write_shapes
from sepc_zoo.errors import UserError
from sepc_zoo.evaluation import validate
from sepc_zoo.evaluation.report.page import write_report
from sepc_zoo.methods.losses import mean_over_processes
from sepc_zoo.models.necks.sepc import IntegratedBatchNorm
from sepc_zoo.ops.distributed import on_main_process, sum_over_processes
from sepc_zoo.training import callbacks
from sepc_zoo.training import trainer as engine
from sepc_zoo.training.resilience.faults import SKIPPED_FOLDER
from sepc_zoo.training.resilience.signals import Interrupted
from sepc_zoo.training.run import Run
from sepc_zoo.training.summary import describe
from sepc_zoo.training.trainer import train

METHODS = ("retinanet", "freeanchor", "fsaf", "atss", "fcos")
TRAINED = (*METHODS, "gfl")  # whose counts are known only after the forward pass
STEPS = 20
SHARES = (3, 1)  # images of each process


@pytest.fixture(scope="module")
def pair():
    processes = ProcessPair()
    yield processes
    processes.close()


def options(data, output, **changes):
    """Options of a run whose images differ in scale but are padded to one size, in any batch."""
    common = {
        "model": "retinanet_test_efficientnet_pconv",
        "scale": (0.6, 1.0),
        "epochs": None,
        "max_steps": STEPS,
        "batch_size": 2,
        "freeze_bn": True,
        "log_interval": 1,
        "val_interval": 100,
    }
    return tiny_runs.options(data, output, **common | changes)


def train_exactly(options):
    with exactly(), pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        train(options)


def read_losses(run):
    rows = [row for row in read_log(run) if row["loss"]]
    return [{k: float(v) for k, v in row.items() if k.startswith("loss")} for row in rows]


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
def test_two_processes_train_like_one_with_the_same_images(model, shapes, tmp_path, pair):
    train_exactly(options(shapes, tmp_path / "one", model=model, batch_size=4))
    pair(train_exactly, options(shapes, tmp_path / "two", model=model, batch_size=2))
    one, two = (read_losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == STEPS
    assert two == [pytest.approx(row, rel=1e-10) for row in one]
    one, two = (state_of(tmp_path / name)["model"] for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


def gradient_of_share(options, groups, empty):
    with exactly():
        run = ready(options)
        batches = batches_of(run, groups[PartialState().process_index], empty)
        gradients, losses = gradient(run, batches)
    return {name: value.numpy() for name, value in gradients.items()}, losses


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_in_two_processes_equals_one_large_batch(method, shapes, tmp_path, pair):
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
    assert mean_over_processes({"loss": torch.tensor(3 + rank)}) == {"loss": 3.5}


@pytest.mark.slow
def test_a_sum_over_processes_hands_back_the_gradients_of_all(pair):
    pair(check_sums)


def descriptions(*many):
    return [describe(Run(options)) for options in many]


@pytest.mark.slow
def test_the_effects_of_the_number_of_processes_are_described(shapes, tmp_path, pair):
    def asked(batch_size, **changes):
        model = "retinanet_r18_ibn_pconv"
        return options(
            shapes, tmp_path, model=model, batch_size=batch_size, recipe="paper", **changes
        )

    few, enough, forced, refused = pair(
        descriptions,
        asked(2, grad_accum_steps=2),
        asked(4),
        asked(4, sync_bn=True),
        asked(2, sync_bn=False),
    )[0]
    assert few["step"] == "8 images: 2 x 2 processes x 2 accumulated"
    assert "sgd, multistep, lr 0.0025," in few["optimizer"]
    assert few["batch norm"] == "over all processes, with 2 images each"
    assert enough["batch norm"] == "of each process alone, with 4 images each"
    assert forced["batch norm"].startswith("over all processes")
    assert refused["batch norm"].startswith("of each process alone")


def images_shown(options, epochs):
    """The ids that this process sees in each epoch."""
    run = Run(options)
    return [
        [
            target["image_id"]
            for batch in run.train_loader.batches(epoch)
            for target in batch.targets
        ]
        for epoch in range(epochs)
    ]


@pytest.mark.slow
def test_images_that_fill_no_step_are_left_for_another_epoch(tmp_path, pair):
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


@pytest.mark.slow
def test_processes_share_the_repeated_images_of_one(shapes, tmp_path, pair):
    alone = images_shown(options(shapes, tmp_path, repeat_factor=1.0, batch_size=4), 2)
    shares = pair(images_shown, options(shapes, tmp_path, repeat_factor=1.0, batch_size=2), 2)
    for together, first, second in zip(alone, *shares, strict=True):
        assert sorted(first + second) == sorted(together)
        assert len(set(together)) < len(together)


def main_at_step(arguments, rank, step):
    """Exit status and error output of a command; one process gets SIGTERM during a step."""
    terminate = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as errors:
        draw_nothing(patch)
        before_step(patch, step, in_process(rank, terminate))
        return main(arguments), errors.getvalue()


def in_process(rank, act):
    """Call ``act`` only in one of the processes."""
    return lambda *args: act(*args) if PartialState().process_index == rank else None


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_saved(shapes, tmp_path, pair):
    def command(run):
        return ["train", *command_line(options(shapes, run, max_steps=4))]

    run, whole = tmp_path / "run", tmp_path / "whole"
    (status, errors), (other, no_errors) = pair(main_at_step, command(run), 1, 3)
    assert (status, other) == (143, 143)
    assert errors.count(f"saved after step 3; go on with --resume {run}") == 1
    assert no_errors == ""
    resume = ["train", "--resume", str(run)]
    for arguments in (resume, command(whole)):
        assert [done for done, _ in pair(main_at_step, arguments, 1, None)] == [0, 0]
    assert_same_weights(run, whole, "optimizer")


def batches_until_signal(options, rank):
    """Validated batches of this process, and the exit status, if a process gets SIGTERM in one."""
    batches, original = [], validate.detect_files

    def detect_files(*arguments):
        batches.append(arguments)
        if len(batches) == 2 and PartialState().process_index == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        patch.setattr(validate, "detect_files", detect_files)
        with pytest.raises(Interrupted, match="saved after step 1;") as end:
            train(options)
    return len(batches), end.value.status


@pytest.mark.slow
def test_a_signal_to_one_process_ends_the_validation_of_both_at_the_same_batch(tmp_path, pair):
    data = write_shapes(tmp_path / "data", train=4, val=13, size=(64, 64))
    asked = options(data, tmp_path / "run", batch_size=1, max_steps=1)
    assert pair(batches_until_signal, asked, 1) == [(2, 143), (2, 143)]


def weights_by_step(options, rank, step, act: Callable | None):
    """The sum of all weights after each step, with ``act`` in one process at one of them."""
    sums = []
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        if act:
            before_step(patch, step, in_process(rank, act))
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
def test_a_step_that_fails_in_one_process_is_skipped_in_all(shapes, tmp_path, pair):
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


def run_in_python(data, folder):
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        result = sepc_zoo.train(data=data, epochs=1, batch_size=2, **SMALL)
    measured = sepc_zoo.validate(result.best, data, device="cpu", workers=0)
    return str(result.output), dict(result.metrics), measured


@pytest.mark.slow
def test_the_functions_return_the_same_in_all_processes(pair, shapes, tmp_path):
    first, second = pair(run_in_python, shapes, tmp_path)
    assert first == second
    output, metrics, measured = first
    assert output == "runs/retinanet_mnv4s_pconv"
    assert measured == {name: metrics[name] for name in measured}


def wait_for_slow_work():
    """Let the main process work for longer than collective operations may take."""
    PartialState(cpu=True)
    distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    try:
        return on_main_process(lambda: time.sleep(3) or "done")
    finally:
        distributed_c10d._set_pg_timeout(distributed_c10d.default_pg_timeout)


@pytest.mark.slow
def test_work_of_the_main_process_may_take_longer_than_collective_operations(pair):
    assert pair(wait_for_slow_work) == ["done", "done"]


def report_is_there(options):
    """Whether a run whose report takes long has it when it returns."""

    def write_slowly(*arguments):
        time.sleep(2)
        write_report(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "write_report", write_slowly)
        train(options)
    return (Path(options.output) / callbacks.REPORT_FILE).is_file()


@pytest.mark.slow
def test_all_processes_wait_for_the_report_of_a_run(pair, shapes, tmp_path):
    assert pair(report_is_there, options(shapes, tmp_path, max_steps=1)) == [True, True]


def validate_into(output, model, data):
    small = ("--workers", "0", "--device", "cpu", "--no-report", "--output", output)
    statuses = [
        main(["validate", "--model", model, "--data", data, *small]),
        main(["compare", model, model, "--data", data, *small, "--bootstrap", "1"]),
    ]
    with pytest.raises((OSError, UserError), match="file"):
        sepc_zoo.validate(model, data, output=output, device="cpu", workers=0)
    return statuses


@pytest.mark.slow
def test_outputs_that_cannot_be_written_end_all_processes(pair, shapes, tmp_path):
    (tmp_path / "file.txt").touch()
    model = sepc_zoo.save_model(finds_everywhere(), tmp_path / "model")
    asked = str(tmp_path / "file.txt"), str(model), str(shapes)
    assert pair(validate_into, *asked) == [[2, 2]] * 2
