Planes = tuple[int, ...]
Shape = tuple[int, int, int, int]
Weights = tuple[int, int, int, int]
Noise = tuple[int, int, int, int]

SERIAL_PAIRS: int
MOST_PLANES: int
MOST_COLUMNS: int
MOST_OCTAVES: int
LAUNCH_OUTPUTS: int
MOST_OVERWRITTEN: int

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
    shape: Shape,
    inputs: Planes,
    outputs: Planes,
    weights: Weights,
    table: int,
    times: int,
    noise: Noise | None,
    threads: int,
    level: str,
    /,
) -> bool: ...
def residual(
    shape: Shape,
    outputs: Planes,
    offsets: Planes,
    gradients: Planes,
    weights: Weights,
    table: int,
    times: int,
    scale: int,
    factor: float,
    loss: int,
    reduce: bool,
    threads: int,
    level: str,
    /,
) -> bool: ...
def covers(table: int, t: int, rows: int, /) -> bool: ...
def matrices(
    table: int, t: int, rows: int, entries: int, to: int, threads: int, level: str, /
) -> bool: ...
def philox4x32(counter: tuple[int, ...], key: int) -> tuple[int, int, int, int]: ...
def philox_words(noise: Noise, count: int, radius: int, angle: int, level: str = "") -> None: ...
def normals_from_words(
    radius: int, angle: int, count: int, wide: bool, z_x: int, z_v: int
) -> None: ...
