SERIAL_PAIRS: int
MAX_PLANES: int

def levels() -> list[str]: ...
def info() -> dict[str, str | list[str]]: ...

class Table:
    def __init__(
        self,
        coefficients: int,
        octaves: int,
        count: int,
        terms: int,
        stride: int,
        end: float,
        used: int,
    ) -> None: ...
    @property
    def address(self) -> int: ...

def stage(
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    copies: tuple[int, ...],
    rows: int,
    channels: int,
    inner: int,
    compute: int,
    weights: int,
    table: int,
    times: int,
    matrices: int,
    weight_rows: int,
    weight_columns: int,
    addressed_noise: bool,
    seed: int,
    first_pair: int,
    stage_index: int,
    stream: int,
    threads: int,
    level: str,
    /,
) -> bool: ...
def residual(
    outputs: tuple[int, ...],
    others: tuple[int, ...],
    gradients: tuple[int, ...],
    rows: int,
    channels: int,
    inner: int,
    compute: int,
    weights: int,
    table: int,
    times: int,
    residuals: int,
    weight_columns: int,
    scale: int,
    factor: float,
    addressed_noise: bool,
    seed: int,
    first_pair: int,
    stage_index: int,
    stream: int,
    loss: int,
    reduce: bool,
    threads: int,
    level: str,
    /,
) -> bool: ...
def covers(table: int, t: int, rows: int, /) -> bool: ...
def matrices(
    table: int,
    t: int,
    rows: int,
    entries: int,
    to: int,
    threads: int,
    level: str,
    /,
) -> bool: ...
def philox4x32(counter: tuple[int, ...], key: int) -> tuple[int, int, int, int]: ...
def philox_words(
    seed: int,
    first_pair: int,
    count: int,
    stage_index: int,
    stream: int,
    radius: int,
    angle: int,
    level: str = "",
) -> None: ...
def normals(
    seed: int,
    first_pair: int,
    count: int,
    stage_index: int,
    stream: int,
    wide: bool,
    z_x: int,
    z_v: int,
    level: str = "",
) -> None: ...
def normals_from_words(
    radius: int, angle: int, count: int, wide: bool, z_x: int, z_v: int
) -> None: ...
