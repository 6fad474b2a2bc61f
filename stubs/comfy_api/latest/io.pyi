from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from .ui import PreviewImage

class InputBase: ...
class OutputBase: ...

class FolderType(Enum):
    temp = ...

class Hidden(Enum):
    unique_id = ...
    prompt = ...
    extra_pnginfo = ...

class Schema:
    def __init__(
        self,
        *,
        node_id: str,
        display_name: str,
        category: str,
        description: str,
        search_aliases: list[str],
        inputs: Sequence[InputBase],
        outputs: Sequence[OutputBase],
        hidden: list[Hidden] = ...,
        has_intermediate_output: bool = ...,
    ) -> None: ...

class NodeOutput:
    def __init__(self, *values: Any, ui: PreviewImage | Mapping[str, Sequence[object]] | None = ...) -> None: ...

class ComfyNode: ...

class _Socket:
    class Input(InputBase):
        def __init__(self, id: str, *, optional: bool = ..., tooltip: str = ...) -> None: ...

    class Output(OutputBase):
        def __init__(self, *, display_name: str, tooltip: str = ...) -> None: ...

class Model(_Socket): ...
class Clip(_Socket): ...
class Vae(_Socket): ...
class ClipVision(_Socket): ...
class Conditioning(_Socket): ...
class Image(_Socket): ...
class Mask(_Socket): ...
class Latent(_Socket): ...
class Guider(_Socket): ...

def Custom(io_type: str) -> type[_Socket]: ...

class Int:
    class Input(InputBase):
        def __init__(
            self,
            id: str,
            *,
            default: int = ...,
            min: int = ...,
            max: int = ...,
            step: int | None = ...,
            control_after_generate: bool = ...,
            advanced: bool = ...,
            tooltip: str = ...,
        ) -> None: ...

class Float:
    class Input(InputBase):
        def __init__(
            self,
            id: str,
            *,
            optional: bool = ...,
            default: float = ...,
            min: float = ...,
            max: float = ...,
            step: float = ...,
            advanced: bool = ...,
            tooltip: str = ...,
        ) -> None: ...

class String:
    class Output(OutputBase):
        def __init__(self, *, display_name: str = ..., tooltip: str = ...) -> None: ...

    class Input(InputBase):
        def __init__(
            self,
            id: str,
            *,
            multiline: bool = ...,
            dynamic_prompts: bool = ...,
            default: str = ...,
            advanced: bool = ...,
            tooltip: str = ...,
        ) -> None: ...

class Combo:
    class Input(InputBase):
        def __init__(
            self,
            id: str,
            *,
            options: list[str],
            default: str = ...,
            optional: bool = ...,
            advanced: bool = ...,
            tooltip: str = ...,
        ) -> None: ...
