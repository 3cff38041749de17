"""Reading a data set once on each machine, for all of its processes."""

from collections.abc import Callable
from dataclasses import replace
from tempfile import NamedTemporaryFile
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from sepc_zoo.data.annotations import Annotations
from sepc_zoo.data.records import Records, map_records
from sepc_zoo.errors import UserError


def read_once(read: Callable[[], Annotations]) -> Annotations:
    """Read annotations in the first process of each machine; the others map its memory.

    All processes must call it. They share a temporary file that is unlinked before this function
    returns, so that nothing is left behind however they end.

    Raises:
        UserError: what ``read`` raised on any machine, in all processes.
    """
    process = PartialState()
    if process.num_processes == 1:
        return read()
    with NamedTemporaryFile(prefix="sepc_zoo_") as file:
        message: Any = None
        if process.is_local_main_process:
            try:
                data = read()
                places = data.records.write(file)
                message = file.name, places, replace(data, records=Records.of([]))
            except UserError as error:
                message = error
        messages = gather_object([message])
        for other in messages:
            if isinstance(other, UserError):
                raise other
        name, places, data = messages[process.process_index - process.local_process_index]
        with open(name, "rb") as written:
            data = replace(data, records=map_records(written, places))
        process.wait_for_everyone()
    return data
