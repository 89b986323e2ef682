"""
A pipeline of diffusers, from end to end
========================================

A pipeline's loop on ``CLDScheduler``; a tiny U-Net with random weights is sampled::

    python examples/diffusers_pipeline.py --steps 20 --out images.png

Needs the extra ``diffusers``. Image i of a generator's seed is the same in a batch of any size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.utils import make_image_grid

from cldfast.compat.diffusers import CLDScheduler


class CLDPipeline(DiffusionPipeline):
    """Images from a U-Net of states, 2C channels, that returns C, as the scheduler is told."""

    def __init__(self, unet: UNet2DModel, scheduler: CLDScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_inference_steps: int = 20,
        first_index: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """first_index: number of the first image among those of the generator's seed."""
        unet, scheduler = self.unet, self.scheduler
        size = unet.config.sample_size
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        sample = scheduler.initial_noise(
            (batch_size, unet.config.in_channels, size, size),
            generator,
            first_index=first_index,
            device=self.device,
        )
        for t in self.progress_bar(scheduler.timesteps):
            state = scheduler.scale_model_input(sample, t)
            output = unet(state.to(unet.dtype), t).sample
            sample = scheduler.step(
                output, t, sample, generator, first_index=first_index
            ).prev_sample
        images = (sample.chunk(2, dim=1)[0] / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def tiny_pipeline(seed: int = 0, solver: str = "stochastic_multistep") -> CLDPipeline:
    """A pipeline with a small untrained U-Net of diffusers that predicts 3 x 16 x 16 images."""
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    return CLDPipeline(unet, CLDScheduler(solver=solver, grid="auto", parameterization="x0"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample four images and write them side by side."""
    parser = argparse.ArgumentParser(description="Sample a tiny random U-Net through diffusers.")
    parser.add_argument("--steps", type=int, default=20, help="grid intervals")
    parser.add_argument("--solver", default="stochastic_multistep", help="any of cldfast's")
    parser.add_argument("--seed", type=int, default=0, help="of the generator")
    parser.add_argument("--out", default="images.png", help="where the images go")
    options = parser.parse_args(arguments)
    pipeline = tiny_pipeline(solver=options.solver)
    generator = torch.Generator().manual_seed(options.seed)
    images = pipeline(4, generator, options.steps).images
    make_image_grid(images, rows=1, cols=4).save(options.out)
    print(f"{options.out}: 4 images, {len(pipeline.scheduler.timesteps)} network calls each")


if __name__ == "__main__":
    main()
