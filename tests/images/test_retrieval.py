"""Images with captions, from folders and tar files on this machine and on the Hub."""

from pathlib import Path

from clipmerge.images.captions import load_captions
from tests.support.benchmark_sets import retrieval_set, save_files
from tests.support.hub_double import FakeHub, upload
from tests.support.image_files import png

FLICKR = "hf://datasets/clip-benchmark/wds_flickr8k"
CAPTIONS = [[["a dog", "a brown dog"], ["two cats"]], [["a tree", "an oak", "a big tree"]]]


def test_each_line_of_a_text_is_a_caption_of_the_image_beside_it(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(png(0))
        (tmp_path / f"{name}.txt").write_text(f"a {name}\n\n an image of {name} \n")
    found = load_captions(str(tmp_path))
    assert found.notes == ()
    assert [Path(path).name for path in found.store.paths] == ["a.png", "b.png"]
    assert found.captions == (("a a", "an image of a"), ("a b", "an image of b"))
    for name in "cd":
        (tmp_path / f"{name}.heic").write_bytes(b"x")
        (tmp_path / f"{name}.txt").write_text("a caption")
    assert load_captions(str(tmp_path)).notes == (
        f"{tmp_path}: left out 2 texts without their images (c.txt, d.txt)",
    )


def test_captions_in_tars_are_lines(hub: FakeHub, tmp_path: Path) -> None:
    files = retrieval_set(tmp_path / "tars", CAPTIONS)
    sha = upload(hub, "clip-benchmark/wds_flickr8k", files, kind="dataset")
    found = load_captions(f"{FLICKR}:test")
    assert found.captions == (
        ("a dog", "a brown dog"),
        ("two cats",),
        ("a tree", "an oak", "a big tree"),
    )
    assert (found.revision, len(found)) == (sha, 3)
    assert found.image(2).size == (32, 32)
    local = load_captions(str(save_files(tmp_path / "copy", files)))
    assert local.captions == found.captions == load_captions(f"{tmp_path / 'copy'}:test").captions
    assert local.image(1).tobytes() == found.image(1).tobytes()


def test_a_sample_keeps_images_with_their_captions(hub: FakeHub, tmp_path: Path) -> None:
    shards = [[[f"caption {2 * shard + k}"] for k in range(2)] for shard in range(6)]
    upload(
        hub, "clip-benchmark/wds_flickr8k", retrieval_set(tmp_path / "tars", shards), kind="dataset"
    )
    found = load_captions(f"{FLICKR}:test", most=3, seed=1)
    assert len(hub.requests("GET", r"/resolve/.*\.tar")) == 2
    sample = found.sample(3, seed=1)
    whole = load_captions(f"{FLICKR}:test")
    for at, captions in enumerate(sample.captions):
        assert sample.image(at).tobytes() == whole.image(whole.captions.index(captions)).tobytes()
    assert sample.sample(99, seed=0) is sample


def test_other_sources_have_no_captions(
    hub: FakeHub, table: Path, tar: Path, tmp_path: Path
) -> None:
    upload(hub, "acme/cars", {"test.parquet": table.read_bytes()}, kind="dataset")
    for source in (
        "fusionbench-eurosat",
        tar,
        tmp_path,
        tmp_path / "nowhere",
        "hf://datasets/acme/cars:test",
    ):
        assert load_captions(str(source)) is None, source
