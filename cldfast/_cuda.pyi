from cldfast._core import Noise, Planes, Shape, Weights

Queue = tuple[int, int]

MOST_PLANES: int
MOST_COLUMNS: int
MOST_OCTAVES: int
LAUNCH_OUTPUTS: int
MOST_OVERWRITTEN: int
CUDART_VERSION: int
ARCHITECTURES: str

class CudaError(RuntimeError): ...

def device_count() -> int: ...
def check_device(device: int) -> int: ...
def stage(
    shape: Shape,
    inputs: Planes,
    outputs: Planes,
    weights: Weights,
    on_device: bool,
    step: int,
    used: int,
    noise: Noise | None,
    queue: Queue,
    /,
) -> None: ...
def residual(
    shape: Shape,
    outputs: Planes,
    offsets: Planes,
    gradients: Planes,
    weights: Weights,
    scale: int,
    factor: float,
    sums: int,
    loss: int,
    reduce: bool,
    queue: Queue,
    /,
) -> None: ...
def residual_room(rows: int, width: int, reduce: bool) -> int: ...
def matrices(
    coefficients: int,
    octaves: int,
    count: int,
    terms: int,
    stride: int,
    end: float,
    times: int,
    rows: int,
    entries: int,
    to: int,
    queue: Queue,
    /,
) -> None: ...
def advance(step: int, times: int, time: int, count: int, wide: bool, queue: Queue, /) -> None: ...
def philox_words(noise: Noise, count: int, radius: int, angle: int, queue: Queue, /) -> None: ...
