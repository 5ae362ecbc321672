"""A model as two files, weights.safetensors and config.json, in a folder or in a Hugging Face hub repository."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelHubMixin

from mtlib.coders import files


class HubModel(ModelHubMixin):
    """save_pretrained, from_pretrained and push_to_hub for a module made from `config`, a dataclass of `config_class`.

    The hub library's mixin gives `push_to_hub(repo_id, ...)`; what is written and read, and its checks, are ours.
    """

    config_class: type

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        config=None,  # given by the mixin's push_to_hub: the settings, which are written anyway
        model_card_kwargs: dict | None = None,
        **extra,
    ) -> None:
        """Write weights.safetensors and config.json: the settings, with `extra` JSON values beside them.

        Args: push_to_hub: also push them to `repo_id` ("owner/name"; default: the folder's name).
        """
        self.recorded = getattr(self, "recorded", {}) | extra
        files.save_model(Path(folder), self, self.config, **self.recorded)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(folder).name)

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, revision: str | None = None, **hub):
        """A model in eval mode from a folder, or from a hub repository "owner/name" with the same two files.

        Args: revision: branch, tag or commit. hub: token, cache_dir, local_files_only or force_download.
        Raises: FileNotFoundError, or ValueError when the weights do not fit the settings or are not finite.
        """
        folder = files.local_folder(folder_or_repo, revision, **hub)
        config = files.read_config(folder, cls.config_class)
        model = cls(config)
        files.load_weights(folder, model)
        saved = json.loads((folder / files.CONFIG).read_text(encoding="utf-8"))
        model.recorded = {k: v for k, v in saved.items() if k not in vars(config)}
        return model.eval()
