"""Images in memory: found, labelled and sampled like those of files."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

from clipmerge.errors import DataError
from clipmerge.images import Columns
from clipmerge.images.batches import read_batches
from clipmerge.images.dataset import load_images
from clipmerge.images.image_set import LabelledImages
from clipmerge.images.store import Pixels
from clipmerge.report.text import texts_of
from tests.support.image_files import assert_images, png


def pixels_of(images: LabelledImages) -> list[bytes]:
    return [images.image(at).tobytes() for at in range(len(images))]


class Pairs:
    """A map-style data set."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.read: list[int] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self.items):
            raise IndexError(index)
        self.read.append(index)
        return self.items[index]


@pytest.fixture(scope="module")
def folder(images: Path) -> LabelledImages:
    return load_images(str(images))


def items_of(images: LabelledImages) -> list[Any]:
    return [(images.image(at), label) for at, label in enumerate(images.labels)]


def test_a_datasets_table_is_sampled_like_the_folder(images: Path, folder: LabelledImages) -> None:
    table = datasets.load_dataset("imagefolder", data_dir=str(images), split="train")
    loaded = load_images(table)
    assert (loaded.source, loaded.class_names) == ("Dataset in memory", folder.class_names)
    assert loaded.labels == folder.labels
    assert pixels_of(loaded.sample(12, seed=3)) == pixels_of(folder.sample(12, seed=3))
    assert load_images(table, ["a", "b", "c"]).class_names == ("a", "b", "c")
    renamed = table.rename_columns({"image": "x", "label": "y"}).cast_column(
        "y", datasets.Value("int64")
    )
    with pytest.raises(DataError, match="no label or caption column found"):
        load_images(renamed)
    assert load_images(renamed, ["a", "b", "c"], columns=Columns("x", "y")).labels == folder.labels
    assert load_images(table.with_format("torch")).labels == folder.labels
    with pytest.raises(DataError, match="load the whole split"):
        load_images(table.to_iterable_dataset())
    with pytest.raises(DataError, match="holds no labelled images"):
        load_images(datasets.DatasetDict({"train": table}))
    loaded = load_images(
        datasets.Dataset.from_dict({"image": [png(0), png(1)], "label": ["cat", "dog"]})
    )
    assert loaded.class_names == ("cat", "dog")
    assert_images(loaded, [0, 1])


@pytest.mark.parametrize(
    "form", ["PIL", "uint8 (height, width, 3)", "uint8 tensor (3, height, width)"]
)
def test_pairs_are_sampled_like_the_folder(folder: LabelledImages, form: str) -> None:
    items = items_of(folder)
    if form.startswith("uint8"):
        items = [(np.array(image), label) for image, label in items]
    if "tensor" in form:
        items = [
            (torch.from_numpy(image).permute(2, 0, 1), torch.tensor(label))
            for image, label in items
        ]
    loaded = load_images(Pairs(items, classes=list(folder.class_names)))
    assert (loaded.labels, loaded.class_names) == (folder.labels, folder.class_names)
    assert pixels_of(loaded.sample(12, seed=3)) == pixels_of(folder.sample(12, seed=3))


def test_labels_are_those_that_a_data_set_keeps_and_need_names(folder: LabelledImages) -> None:
    data = Pairs(items_of(folder), targets=list(folder.labels), classes=list(folder.class_names))
    assert load_images(data).labels == folder.labels
    assert len(set(data.read)) <= 8  # which are compared with the list
    with pytest.raises(DataError, match="numbers 0 to 2 without names"):
        load_images(Pairs(items_of(folder)))
    assert load_images(Pairs(items_of(folder)), ("x", "y", "z")).class_names == ("x", "y", "z")
    named = [(image, folder.class_names[label]) for image, label in items_of(folder)]
    assert load_images(Pairs(named)).class_names == folder.class_names


def test_labels_that_a_transform_changes_are_those_of_the_items(folder: LabelledImages) -> None:
    items = [(image, label // 2) for image, label in items_of(folder)]
    data = Pairs(items, targets=list(folder.labels), classes=list(folder.class_names))
    changed = tuple(label for _, label in items)
    for given in (
        data,
        DataLoader(data, batch_size=4, collate_fn=lambda rows: [*zip(*rows, strict=True)]),
    ):
        loaded = load_images(given, ("few", "many"))
        assert (loaded.labels, loaded.class_names) == (changed, ("few", "many"))


def test_pictures_are_read_as_their_files_are(tmp_path: Path) -> None:
    """A camera's note on how it was held, and inks."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    held, inks, depth = (tmp_path / name for name in ("held.png", "inks.jpg", "depth.tiff"))
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(noise).save(held, exif=turned)
    Image.fromarray(noise).convert("CMYK").save(inks)
    Image.fromarray(noise[:, :, 0].astype(np.float32) / 255).save(depth)
    for file in (held, inks, depth):
        alone, opened = (load_images([(at, 0)], ["a"]) for at in (file, Image.open(file)))
        assert alone.image(0).size == opened.image(0).size
        difference = np.asarray(alone.image(0), int) - np.asarray(opened.image(0), int)
        assert abs(difference).max() <= 1


def test_a_part_of_a_data_set_has_its_class_names(folder: LabelledImages) -> None:
    data = Pairs(items_of(folder), classes=list(folder.class_names))
    part = Subset(Subset(data, range(1, len(data))), range(1, 5))
    loader = DataLoader(
        part, batch_size=2, collate_fn=lambda items: tuple(zip(*items, strict=True))
    )
    for source in (part, loader):
        loaded = load_images(source)
        assert loaded.class_names == folder.class_names
        assert loaded.labels == folder.labels[2:6]
    several = Pairs(items_of(folder), classes=[(name, "other") for name in folder.class_names])
    assert load_images(several).class_names == folder.class_names


def test_images_may_be_paths(images: Path, folder: LabelledImages) -> None:
    paths = sorted(images.rglob("*.png"))
    for pairs in ([(p, p.parent.name) for p in paths], [(str(p), p.parent.name) for p in paths]):
        loaded = load_images(pairs)
        assert loaded.class_names == tuple(sorted({p.parent.name for p in paths}))
        assert pixels_of(loaded) == [Image.open(p).convert("RGB").tobytes() for p in paths]
    missing = f"{paths[0]}x"
    with pytest.raises(DataError) as error:
        load_images([(missing, 0)], ["a", "b"]).image(0)
    assert f"image 0 ({missing}): cannot be read as an image (No such file" in str(error.value)


def test_preprocessed_pixels_are_taken_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels, labels = torch.randn(8, 3, 4, 4, generator=generator), torch.arange(8) % 2
    data = TensorDataset(pixels, labels)
    images = load_images(data, ["a", "b"])
    (batch,) = read_batches(images, 8, lambda _: pytest.fail("preprocessed again"))
    assert torch.equal(batch.pixels, pixels)
    sample = images.sample(4, seed=0)
    (chosen,) = read_batches(sample, 4, lambda _: pytest.fail("preprocessed again"))
    assert isinstance(sample.store, Pixels)
    assert torch.equal(chosen.pixels, pixels[list(sample.store.items)])
    assert chosen.labels.tolist() == labels[list(sample.store.items)].tolist()
    with pytest.raises(DataError, match="holds preprocessed pixels"):
        images.image(0)


def test_a_loader_gives_its_first_images_in_its_order() -> None:
    pixels, labels = (
        torch.arange(10.0).reshape(10, 1, 1, 1).expand(10, 3, 2, 2),
        torch.arange(10) % 2,
    )
    loader: DataLoader[Any] = DataLoader(TensorDataset(pixels, labels), batch_size=3)
    images = load_images(loader, ["a", "b"], max_images=5)
    (batch,) = read_batches(images, 5, lambda _: pytest.fail("preprocessed again"))
    assert batch.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert images.notes == ()
    assert len(load_images(loader, ["a", "b"])) == 10

    def as_mapping(items: list[Any]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([x for x, _ in items]),
            "labels": torch.stack([y for _, y in items]),
        }

    mapped: DataLoader[Any] = DataLoader(
        TensorDataset(pixels, labels), batch_size=3, collate_fn=as_mapping
    )
    assert load_images(mapped, ["a", "b"], max_images=5).labels == images.labels


def test_a_loader_of_pictures_is_preprocessed_and_told_if_it_is_not_shuffled(
    folder: LabelledImages,
) -> None:
    data = Pairs(items_of(folder), classes=list(folder.class_names))
    loader: DataLoader[Any] = DataLoader(
        data, batch_size=4, collate_fn=lambda items: tuple(zip(*items, strict=True))
    )  # type: ignore[arg-type]
    assert pixels_of(load_images(loader)) == pixels_of(folder)
    note = "DataLoader in memory: its first 6 images show 1 of 3 classes; shuffle it"
    assert texts_of(load_images(loader, max_images=6).notes) == [note]


REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (Pairs([]), "holds no images"),
    "no pairs": (
        Pairs([torch.zeros(3, 2, 2)]),
        r"items are not \(image, label\) or \(image, caption\) pairs",
    ),
    "wide numbers": (
        Pairs([(np.zeros((4, 4, 3), np.int32), 0), (np.zeros((4, 4, 3), np.int32), 1)]),
        "of int32",
    ),
    "a vector of pixels": (Pairs([(torch.zeros(5), 0), (torch.zeros(5), 1)]), r"the shape \(5,\)"),
    "pixels of two sizes": (
        Pairs([(torch.zeros(3, 2, 2), 0), (torch.zeros(3, 4, 4), 1)]),
        "the same for every image",
    ),
    "batches of images alone": (
        DataLoader(Pairs([torch.zeros(3, 2, 2)] * 4), batch_size=1),
        "batches are not",
    ),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_cannot_be_used_is_refused(which: str) -> None:
    data, message = REFUSED[which]
    with pytest.raises(DataError, match=message):
        list(
            read_batches(load_images(data, ["a", "b"]), 2, lambda images: torch.zeros(len(images)))
        )


def test_grey_values_with_a_channel_are_a_grey_image() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    data = Pairs([(grey, 0), (grey[:, :, None], 1)], classes=["a", "b"])
    assert len(set(pixels_of(load_images(data)))) == 1


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_transparent_images_may_have_their_channels_first(
    channels: int, dtype: torch.dtype
) -> None:
    values = torch.randint(256, (channels, 8, 9), dtype=torch.uint8)
    values[-1] = 255  # nothing is transparent
    pixels = values if dtype == torch.uint8 else values / 255
    found = load_images(Pairs([(pixels, 0), (pixels, 1)]), ["a", "b"])
    expected = values[:3] if channels == 4 else values[:1].expand(3, -1, -1)
    assert found.image(0).size == (9, 8)
    assert np.array_equal(np.asarray(found.image(0)), expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("kind", ["bfloat16", "with a gradient"])
def test_tensors_that_numpy_does_not_take_are_images(kind: str) -> None:
    pixels = torch.rand(3, 8, 9)
    tensor = pixels.bfloat16() if kind == "bfloat16" else pixels.clone().requires_grad_()
    found = load_images(Pairs([(tensor, 0), (tensor, 1)]), ["a", "b"])
    difference = np.asarray(found.image(1)).astype(float) - 255 * pixels.permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 1.01  # bfloat16 has eight bits


def test_arrays_of_other_shapes_are_refused_in_one_line() -> None:
    for shape in ((5, 8, 9), (8, 9, 5), (1, 3, 8, 9)):
        found = load_images(Pairs([(np.zeros(shape, np.uint8), 0)] * 2), ["a", "b"])
        with pytest.raises(DataError, match="expected a path, a PIL image, uint8 values"):
            found.image(0)


def test_a_table_of_pandas_is_refused_in_one_line() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"image": ["a.png", "b.png"], "label": [0, 1]})
    with pytest.raises(DataError, match="DataFrame holds no labelled images"):
        load_images(table)


def test_floats_of_totensor_alone_are_images_and_normalised_ones_are_not(
    folder: LabelledImages,
) -> None:
    """`ToTensor` divides by 255; what it leaves is preprocessed like the picture itself."""
    tensors = [
        (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, label)
        for image, label in items_of(folder)
    ]
    names = list(folder.class_names)
    loaded = load_images(Pairs(tensors), names)
    assert pixels_of(loaded) == pixels_of(folder)
    assert "floats lie within [0, 1]" in texts_of(loaded.notes)[0]
    normalised = load_images(Pairs([((x - 0.45) / 0.27, label) for x, label in tensors]), names)
    assert isinstance(normalised.store, Pixels)
    assert normalised.notes == ()
    # a black image tells nothing of the others, whichever they are
    black = (torch.zeros_like(tensors[0][0]), 0)
    assert not isinstance(load_images(Pairs([black, *tensors]), names).store, Pixels)
    unlike = [black, *((2 * x - 1, label) for x, label in tensors)]
    assert isinstance(load_images(Pairs(unlike), names).store, Pixels)
    mixed = load_images(Pairs([tensors[0], (tensors[0][0] + 2, 0), *tensors]), names)
    with pytest.raises(DataError, match=r"image 1: has values outside \[0, 1\]"):
        mixed.image(1)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.eye(3)[0], "a label has 3 numbers; give one class per image .of one-hot"),
        (np.eye(3, dtype=int)[1], "a label has 3 numbers"),
        (0.5, "0.5 is not a label"),
        (float("nan"), "nan is not a label"),
        (torch.zeros(77, dtype=torch.int64), "captions as texts, not as tokens"),
    ],
)
def test_labels_that_are_no_class_are_refused(label: Any, message: str) -> None:
    data = Pairs([(np.zeros((4, 4, 3), np.uint8), label)] * 2)
    with pytest.raises(DataError, match=message):
        load_images(data, ["a", "b", "c"])
