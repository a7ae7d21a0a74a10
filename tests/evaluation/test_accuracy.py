import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from tests.support.command import clipmerge, refused
from tests.support.tiny_clip import Folders


def test_what_is_no_whole_checkpoint_is_refused(
    pair: Folders, images: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "weights.safetensors"
    bare.write_bytes((pair[0] / "model.safetensors").read_bytes())
    CLIPModel.from_pretrained(pair[1]).vision_model.save_pretrained(tmp_path / "tower")
    for checkpoint, told in (
        (bare, "no config.json beside it says"),
        (tmp_path / "tower", "holds the vision tower only, which has no zero-shot classes"),
    ):
        assert told in refused(clipmerge("evaluate", checkpoint, "--data", images))
    shutil.copytree(pair[1], tmp_path / "broken")
    weights = load_file(pair[1] / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors")
    assert "NaN" in refused(clipmerge("evaluate", tmp_path / "broken", "--data", images))
