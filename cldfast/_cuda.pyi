MAX_PLANES: int
CUDART_VERSION: int
ARCHITECTURES: str

class CudaError(RuntimeError): ...

def device_count() -> int: ...
def check_device(device: int) -> int: ...
def stage(
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    copies: tuple[int, ...],
    rows: int,
    channels: int,
    inner: int,
    compute: int,
    weights: int,
    on_device: bool,
    matrices: int,
    weight_rows: int,
    weight_columns: int,
    step: int,
    used: int,
    addressed_noise: bool,
    seed: int,
    first_pair: int,
    stage_index: int,
    stream_id: int,
    device: int,
    stream: int,
    /,
) -> None: ...
def residual(
    outputs: tuple[int, ...],
    others: tuple[int, ...],
    gradients: tuple[int, ...],
    rows: int,
    channels: int,
    inner: int,
    compute: int,
    weights: int,
    residuals: int,
    weight_columns: int,
    used: int,
    scale: int,
    factor: float,
    addressed_noise: bool,
    seed: int,
    first_pair: int,
    stage_index: int,
    stream_id: int,
    sums: int,
    loss: int,
    reduce: bool,
    device: int,
    stream: int,
    /,
) -> None: ...
def residual_room(rows: int, channels: int, inner: int, reduce: bool) -> int: ...
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
    device: int,
    stream: int,
    /,
) -> None: ...
def advance(
    step: int, times: int, time: int, count: int, wide: bool, device: int, stream: int, /
) -> None: ...
def philox_words(
    seed: int,
    first_pair: int,
    count: int,
    stage_index: int,
    stream_id: int,
    radius: int,
    angle: int,
    device: int,
    stream: int,
    /,
) -> None: ...
