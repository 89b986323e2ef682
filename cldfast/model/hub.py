"""Models written to folders and to the Hugging Face Hub, and read from both."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import nn

from cldfast.conditions import Conditions
from cldfast.extras import extra_module
from cldfast.files import PathLike
from cldfast.lab.models.score_network import ScoreNetwork
from cldfast.model.run_folder import CONFIG, MODEL, OWN, RunConfig, load_run, save_run
from cldfast.planner.parameterization import Parameterization, form_name
from cldfast.process.sde import LinearPhaseSDE
from cldfast.training.data_scale import DataScale
from cldfast.training.losses import Weighting

M = TypeVar("M", bound="Shared")
_PURPOSE = "models on the Hugging Face Hub need huggingface-hub"


class Shared(nn.Module):
    """What of a model is written: the methods are those of `huggingface_hub.ModelHubMixin`.

    A folder has the two files of a run folder, `config.json` and `model.safetensors`, so that a run
    folder of `cldfast train` is read too.
    """

    net: Any
    sde: LinearPhaseSDE
    parameterization: Parameterization
    scale: DataScale | None
    shape: tuple[int, ...] | None
    t_min: float
    weighting: Weighting
    times: str
    null: dict[str, Any]

    @property
    def known_shape(self) -> tuple[int, ...]:
        """The shape of one sample; ValueError where it is not known."""
        if self.shape is None:
            raise ValueError("shape: expected shape=(d,) or (C, H, W), or data in loss, got none")
        return self.shape

    def save_pretrained(
        self, folder: PathLike, *, repo_id: str | None = None, push_to_hub: bool = False, **hub: Any
    ) -> Path:
        """Write the model to a folder; returns its path.

        push_to_hub, repo_id, hub: whether, where and how to share it too, see `push_to_hub`.

        Raises ValueError for what plain data do not say: a network that is no module, a process
        with a rate of one's own, a parameterisation without a name, a null that is no number, no
        shape; ImportError without safetensors.
        """
        if not isinstance(self.net, nn.Module):
            raise ValueError(f"net: expected a module to save, got {type(self.net).__name__}")
        layout = {"kind": OWN, "class": type(self.net).__name__}
        if isinstance(self.net, ScoreNetwork):
            layout = self.net.config()
        name, sigma_data = form_name(self.parameterization)
        train: dict[str, Any] = {"sigma_data": sigma_data, "times": self.times}
        if isinstance(self.weighting, str):
            train["weighting"] = self.weighting
        config = RunConfig(
            sde=self.sde.config(), model=layout, shape=self.known_shape,
            parameterization=name, t_min=self.t_min, train=train, null=self.null,
            data=None if self.scale is None else {"standardised": asdict(self.scale)},
        )  # fmt: skip
        path = save_run(folder, self.net, config)
        if push_to_hub:
            self.push_to_hub(path.name if repo_id is None else repo_id, **hub)
        return path

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push model using cldfast",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Write the model to a repository of the Hub, a new one if need be; returns its address.

        Raises ImportError without huggingface-hub, and what that raises.
        """
        hub = extra_module("huggingface_hub", _PURPOSE)
        api = hub.HfApi(token=token)
        repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message=commit_message,
                    revision=branch, create_pr=create_pr,
                )
            )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls: type[M],
        name: PathLike,
        net: nn.Module | None = None,
        *,
        null: Conditions | None = None,
        device: torch.device | str | None = None,
        **hub: Any,
    ) -> M:
        """Read a model from a folder, which may be a run folder, or else from the Hub.

        name: the folder, or the name of a repository. net: the network to be filled, where it is
        one of your own; networks of `cldfast.lab.models` are built from the folder. null: instead
        of the folder's. hub: options of `huggingface_hub.snapshot_download`, such as `revision`.
        The network is in evaluation mode.

        Raises ValueError, in one line that names the file, for a folder that is no model; and
        ImportError without safetensors, or for the Hub without huggingface-hub.
        """
        if Path(name).is_dir():
            return cls._read(name, net, null, device)
        if Path(name).exists() or str(name).count("/") > 1 or str(name).startswith((".", "/")):
            raise ValueError(f"{name}: expected a folder, or the name of a repository")
        module = extra_module("huggingface_hub", _PURPOSE)
        there = module.snapshot_download(repo_id=str(name), allow_patterns=[CONFIG, MODEL], **hub)
        with TemporaryDirectory() as folder:
            # The Hub's cache has links in place of files.
            for file in (CONFIG, MODEL):
                shutil.copyfile(Path(there) / file, Path(folder) / file)
            return cls._read(folder, net, null, device)

    @classmethod
    def _read(
        cls: type[M],
        folder: PathLike,
        net: nn.Module | None,
        null: Conditions | None,
        device: torch.device | str | None,
    ) -> M:
        net, sde, config = load_run(folder, net)
        recipe = config.train or {}
        model = cls(
            net, sde, config.form, config.data_scale, shape=config.shape, t_min=config.t_min,
            weighting=recipe.get("weighting"), times=recipe.get("times"),
            null=config.null if null is None else null,
        )  # fmt: skip
        return model.to(device).eval()
