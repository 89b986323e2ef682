"""Two small networks to train: an MLP for vectors and a U-Net for images.

Both are called net(u, t, labels=None): u is the state, x half then v half along dimension 1, or of
the data's shape for a denoiser, and t (B,) holds times or noise levels. Where all rows share one t,
an expanded view, everything that depends on t alone is computed on one row.
"""

from cldfast.lab.models.build import build_model
from cldfast.lab.models.embedding import TimeEmbedding
from cldfast.lab.models.mlp import MLPScore
from cldfast.lab.models.unet import UNetScore

__all__ = ["MLPScore", "TimeEmbedding", "UNetScore", "build_model"]
