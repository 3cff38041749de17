"""Commands called in this process."""

from sepc_zoo.cli import main

SHAPES = ["disc", "square", "triangle", "star"]


def call(*arguments):
    return main([str(argument) for argument in arguments])


def assert_refused(capsys, *named):
    """The last command said on stderr what is wrong, without a traceback."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    for name in named:
        assert str(name) in errors
