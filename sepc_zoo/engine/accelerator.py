"""The accelerator that training and validation run on."""

from accelerate import Accelerator

from sepc_zoo.config import ConfigError


def make_accelerator(amp: str | None, cpu: bool) -> Accelerator:
    """Processes, device and mixed precision.

    Raises:
        ConfigError: the device cannot do what is asked for.
    """
    accelerator = Accelerator(
        mixed_precision=amp or "no", cpu=cpu, step_scheduler_with_optimizer=False
    )
    if amp == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("--amp fp16 needs a GPU; the CPU can do bf16")
    return accelerator
