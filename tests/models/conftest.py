"""Small checkpoints on disk."""

from pathlib import Path

import pytest
import torch


@pytest.fixture
def checkpoint(tiny, letters, tmp_path):
    """Writes a small checkpoint: ``checkpoint()`` a sound one; ``edit`` changes the model before it is saved."""

    def write(name: str = "small", edit=lambda model: None, **changes: object) -> Path:
        folder = tmp_path / name
        model = tiny(num_hidden_layers=2, **changes)
        with torch.no_grad():
            edit(model)
        model.save_pretrained(folder)
        letters.save_pretrained(folder)
        return folder

    return write
