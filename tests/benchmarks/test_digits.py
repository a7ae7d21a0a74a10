"""Training of the demo's models: styles, captions, the tokenizer, the loss, and the same bytes in every run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.digits import __main__ as command
from benchmarks.digits import training
from benchmarks.digits.training import Training

BRIEF = Training(zeroshot_steps=3, zeroshot_batch=8, finetune_steps=2, finetune_batch=8)


def test_a_shared_caption_shares_its_softmax() -> None:
    logits = torch.tensor([[2.0, 0.5], [1.0, 0.0], [0.0, 1.5]], dtype=torch.float64)
    target = [0, 0, 1]
    # three images and their three captions written out, the first two captions being the same
    full = [[row[caption] for caption in target] for row in logits.exp().tolist()]
    own = [full[0][0] + full[0][1], full[1][0] + full[1][1], full[2][2]]
    to_text = -sum(np.log(mine / sum(row)) for mine, row in zip(own, full, strict=True)) / 3
    columns = [sum(row[0] for row in full), sum(row[2] for row in full)]
    first = -(np.log(full[0][0] / columns[0]) + np.log(full[1][0] / columns[0])) / 2
    second = -np.log(full[2][2] / columns[1])
    expected = (to_text + (first + second) / 2) / 2
    assert training.contrastive_loss(logits, torch.tensor(target)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_training_is_seeded_and_moves_both_towers_but_not_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    monkeypatch.setattr(command, "Training", lambda **_: BRIEF)
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        monkeypatch.setattr(command, "MODELS", folder)
        command.main()
        written.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert written[0] == written[1]
    before, after = (load_file(tmp_path / "one" / f"{name}.safetensors") for name in ("zeroshot", "finetuned"))
    assert before.keys() == after.keys()
    assert torch.equal(before["logit_scale"], after["logit_scale"])
    for name in ("text_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.5.mlp.fc1.weight"):
        assert not torch.equal(before[name], after[name])
