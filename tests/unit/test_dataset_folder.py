import os
import random
import shutil
import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from loradash.datasets.captions import MAX_CAPTION_BYTES
from loradash.datasets.folder import combined_hash, require_usable, scan
from loradash.datasets.images import fit, open_image
from loradash.domain.dataset_findings import findings
from loradash.errors import InvalidDataset

HEIC = Path(__file__).parents[1] / "data" / "half.heic"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def names(report):
    return [image.relative_path for image in report.images]


def left_out(report):
    return {one.reason: list(one.names) for one in report.left_out}


def only_problem(report):
    (problem,) = report.problems
    assert not report.images
    return problem


def pixels(path):
    return open_image(path.read_bytes(), path.name).pixels


def test_images_of_all_folders_are_found_in_the_order_of_their_paths(data, save_image):
    for name in ("b.jpg", "a.png", "z/a.webp", "a/deep/er/c.bmp", "B.JPEG"):
        save_image(name, caption="x")
    report = scan(data)
    assert names(report) == ["B.JPEG", "a.png", "a/deep/er/c.bmp", "b.jpg", "z/a.webp"]
    assert report.problems == ()
    assert report.missing_captions == []


def test_an_image_is_described_by_its_pixels_bytes_and_caption(data, save_image):
    path = save_image("a.png", size=(40, 30), caption="  a red\n square ")
    (image,) = scan(data).images
    assert (image.width, image.height) == (40, 30)
    assert image.size_bytes == path.stat().st_size
    assert image.caption == "a red square"
    assert len(image.sha256) == 64
    assert not image.has_alpha


def test_the_exif_orientation_is_applied(data, save_image):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    path = save_image("a.jpg", size=(40, 20), exif=exif)
    (image,) = scan(data).images
    assert (image.width, image.height) == (20, 40)
    assert pixels(path).size == (20, 40)


def test_transparent_areas_become_white(data, save_image):
    path = save_image("a.png", mode="RGBA", colour=(255, 0, 0, 0))
    assert scan(data).images[0].has_alpha
    assert pixels(path).getpixel((3, 3)) == (255, 255, 255)


def test_half_transparent_areas_are_mixed_with_white(save_image):
    path = save_image("a.webp", mode="RGBA", colour=(0, 0, 0, 128), lossless=True, exact=True)
    assert pixels(path).getpixel((3, 3)) == (127, 127, 127)


def test_a_transparent_palette_colour_becomes_white(data, save_image):
    path = save_image("a.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.save(path, transparency=0)
    assert scan(data).images[0].has_alpha
    assert pixels(path).getpixel((0, 0)) == (255, 255, 255)
    assert pixels(path).getpixel((1, 0)) == (200, 100, 50)


def test_a_palette_without_transparency_keeps_its_colours(data, save_image):
    path = save_image("a.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    palette.save(path)
    assert not scan(data).images[0].has_alpha
    assert pixels(path).getpixel((0, 0)) == (10, 20, 30)


def test_a_cmyk_jpeg_becomes_rgb(data, save_image):
    path = save_image("a.jpg", mode="CMYK", colour=(0, 255, 255, 0), quality=100)
    assert names(scan(data)) == ["a.jpg"]
    red, green, blue = pixels(path).getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15


def test_a_grey_image_becomes_rgb(save_image):
    assert pixels(save_image("a.png", mode="L", colour=77)).getpixel((0, 0)) == (77, 77, 77)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (0x8080, 0x80), (0xFFFF, 0xFF)])
def test_a_16_bit_png_keeps_its_brightness(data, save_image, value, grey):
    path = save_image("a.png", mode="I;16", colour=value)
    assert names(scan(data)) == ["a.png"]
    assert pixels(path).getpixel((0, 0)) == (grey, grey, grey)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_a_truncated_image_is_a_problem(data, save_image, name, part):
    path = save_image(name)
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    problem = only_problem(scan(data))
    assert (problem.relative_path, problem.kind) == (name, "corrupt")
    assert problem.message


@pytest.mark.parametrize(
    "content", [b"", b"just text, renamed", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]
)
@pytest.mark.parametrize("name", ["a.png", "pixels.jpg"])
def test_a_file_that_is_no_image_is_a_problem(data, name, content):
    (data / name).write_bytes(content)
    problem = only_problem(scan(data))
    assert (problem.relative_path, problem.kind) == (name, "corrupt")


def test_an_image_of_another_kind_under_a_known_ending_is_a_problem(data, save_image):
    save_image("a.tga").rename(data / "a.png")
    assert "not a jpg, png, webp, bmp, gif" in only_problem(scan(data)).message


def test_an_image_under_another_known_ending_is_read(data, save_image):
    save_image("a.jpg").rename(data / "a.png")
    assert names(scan(data)) == ["a.png"]


def test_files_of_other_kinds_are_no_images(data, save_image):
    save_image("a.png")
    (data / "notes.md").write_text("x")
    (data / "clip.mp4").write_bytes(b"x")
    report = scan(data)
    assert names(report) == ["a.png"]
    assert report.problems == ()


def test_a_small_file_that_claims_huge_pixels_is_too_large(data):
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    (data / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )
    problem = only_problem(scan(data))
    assert problem.kind == "too_large"


def test_hidden_files_and_folders_are_left_out(data, save_image):
    for name in (".a.png", ".git/b.png", "x/.thumbs/c.png", "._d.jpg", "e.png"):
        save_image(name)
    report = scan(data)
    assert names(report) == ["e.png"]
    assert report.problems == ()


def test_links_of_an_own_folder_are_followed_to_wherever_they_lead(data, save_image, tmp_path):
    """As in a snapshot of the Hugging Face cache: links to files that have no endings."""
    blob, text = save_image("../blobs/x.png").rename(tmp_path / "blobs" / "1f"), tmp_path / "2f"
    text.write_text("a cat")
    (data / "a.png").symlink_to(blob)
    (data / "a.txt").symlink_to("../2f")
    save_image("../outside/b.png")
    (data / "more").symlink_to(tmp_path / "outside", target_is_directory=True)
    report = scan(data)
    assert names(report) == ["a.png", "more/b.png"]
    assert [image.caption for image in report.images] == ["a cat", None]
    assert (report.problems, report.left_out) == ((), ())


def test_linked_folders_that_lead_in_a_circle_are_entered_once_and_named(data, save_image):
    save_image("sub/a.png")
    (data / "sub" / "up").symlink_to(data, target_is_directory=True)
    (data / "twice").symlink_to(data / "sub", target_is_directory=True)
    report = scan(data)
    assert names(report) == ["sub/a.png"]
    assert left_out(report) == {"linked_folder": ["sub/up/", "twice/"]}


def test_links_of_a_requests_folder_lead_only_to_where_requests_may_read(
    data, save_image, tmp_path
):
    outside = save_image("../outside/b.png")
    (data / "a.png").symlink_to(outside)
    (data / "more").symlink_to(tmp_path / "outside", target_is_directory=True)
    report = scan(data, link_roots=[])
    assert names(report) == []
    assert [(p.relative_path, p.kind) for p in report.problems] == [
        ("more", "escapes_folder"), ("a.png", "escapes_folder"),
    ]  # fmt: skip
    assert names(scan(data, link_roots=[tmp_path / "outside"])) == ["a.png", "more/b.png"]


def test_a_caption_that_leads_to_where_requests_may_not_read_is_not_read(
    data, save_image, tmp_path
):
    save_image("a.png")
    (tmp_path / "secret").write_text("password")
    (data / "a.txt").symlink_to(tmp_path / "secret")
    problem = only_problem(scan(data, link_roots=[]))
    assert "password" not in problem.message
    assert "caption" in problem.message


def test_a_caption_whose_link_leads_nowhere_is_a_problem_and_not_missing(data, save_image):
    save_image("a.png")
    (data / "a.txt").symlink_to("missing")
    assert "its caption" in only_problem(scan(data)).message


def test_a_link_within_the_folder_is_an_image(data, save_image):
    save_image("a.png")
    (data / "b.png").symlink_to("a.png")
    assert names(scan(data)) == ["a.png", "b.png"]


def test_a_dataset_folder_that_is_a_link_itself_is_read(data, save_image, tmp_path):
    save_image("a.png")
    (tmp_path / "link").symlink_to(data, target_is_directory=True)
    assert names(scan(tmp_path / "link")) == ["a.png"]


def test_a_broken_link_is_a_problem(data):
    (data / "a.png").symlink_to("missing.png")
    assert only_problem(scan(data)).kind == "unreadable"


def test_links_in_a_circle_are_a_problem(data):
    (data / "a.png").symlink_to("b.png")
    (data / "b.png").symlink_to("a.png")
    assert [p.relative_path for p in scan(data).problems] == ["a.png", "b.png"]


def test_a_name_that_is_not_utf8_is_a_problem(data, save_image):
    save_image("a.png").rename(data / os.fsdecode(b"\xff.png"))
    save_image("b.png")
    report = scan(data)
    assert names(report) == ["b.png"]
    assert len(report.problems) == 1


def test_a_folder_that_is_named_like_an_image_is_a_problem_or_ignored(data, save_image):
    save_image("folder.png/inner.png")
    assert names(scan(data)) == ["folder.png/inner.png"]


def test_a_pipe_that_is_named_like_an_image_is_a_problem_and_not_waited_for(data):
    os.mkfifo(data / "a.png")
    reports = []
    thread = threading.Thread(target=lambda: reports.append(scan(data)), daemon=True)
    thread.start()
    thread.join(1)
    waited = thread.is_alive()
    if waited:  # let the thread go
        os.close(os.open(data / "a.png", os.O_WRONLY | os.O_NONBLOCK))
        thread.join(5)
    assert not waited
    assert only_problem(reports[0]).kind == "unreadable"


def test_a_missing_caption_is_none_and_an_empty_one_is_empty(data, save_image):
    save_image("a.png")
    save_image("b.png", caption="  \n")
    report = scan(data)
    assert [image.caption for image in report.images] == [None, ""]
    assert report.missing_captions == ["a.png"]


def test_a_byte_order_mark_is_not_part_of_a_caption(data, save_image):
    save_image("a.png")
    (data / "a.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    assert scan(data).images[0].caption == "a cat"


@pytest.mark.parametrize("content", ["süß".encode("latin-1"), "a cat".encode("utf-16-le")])
def test_a_caption_that_is_not_utf8_is_a_problem_with_its_place(data, save_image, content):
    save_image("a.png")
    (data / "a.txt").write_bytes(content)
    problem = only_problem(scan(data))
    assert problem.kind == "unreadable"
    assert "caption" in problem.message
    assert "not UTF-8" in problem.message


def test_an_oversized_caption_is_a_problem(data, save_image):
    save_image("a.png", caption="x" * (MAX_CAPTION_BYTES + 1))
    assert f"{MAX_CAPTION_BYTES:,}" in only_problem(scan(data)).message


def test_captions_with_another_ending_are_found(data, save_image):
    save_image("a.v2.png", caption="wrong")
    (data / "a.v2.caption").write_text("right")
    assert scan(data, ".caption").images[0].caption == "right"


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa cat",
        "a cat".encode("utf-16"),
        b"\xfe\xff" + "a cat".encode("utf-16-be"),
        "a cat".encode("utf-32"),
    ],
)
def test_a_byte_order_mark_says_how_a_caption_is_read(data, save_image, content):
    save_image("a.png")
    (data / "a.txt").write_bytes(content)
    assert scan(data).images[0].caption == "a cat"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_caption_of_two_byte_letters_without_a_mark_is_a_problem(data, save_image, encoding):
    save_image("a.png")
    (data / "a.txt").write_bytes("a red fox".encode(encoding))
    assert "UTF-16 without a byte order mark" in only_problem(scan(data)).message


READ = ["a.apng", "a.avif", "a.bmp", "a.dib", "a.gif", "a.jfif", "a.jpe", "a.jpeg", "a.jpg",
        "a.png", "a.tif", "a.tiff", "a.webp"]  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_images_of_every_ending_are_read_in_any_letter_case(data, save_image, name):
    save_image(name.upper(), colour=(200, 30, 40))
    report = scan(data)
    assert names(report) == [name.upper()]
    colour = pixels(data / name.upper()).getpixel((4, 4))
    assert max(abs(a - b) for a, b in zip(colour, (200, 30, 40), strict=True)) < 12


def test_a_heic_image_is_read(data):
    data.joinpath("a.HEIC").write_bytes(HEIC.read_bytes())
    (image,) = scan(data).images
    assert (image.width, image.height, image.has_alpha) == (64, 48, False)
    left, right = (pixels(HEIC).getpixel((x, 24)) for x in (8, 56))
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]


@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_truncated_heic_image_is_a_problem(data, part):
    whole = HEIC.read_bytes()
    (data / "a.heic").write_bytes(whole[: int(len(whole) * part)])
    assert only_problem(scan(data)).kind == "corrupt"


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.avif", "a.apng", "a.webp"])
def test_of_an_animation_the_first_frame_is_used_and_that_is_told(data, save_image, name):
    path = save_image(name)
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    report = scan(data)
    assert report.only_first_frames == [name]
    red, _, blue = pixels(path).getpixel((4, 4))
    assert red > 200 > 50 > blue


def test_what_is_not_taken_is_counted_and_named_with_its_reason(data, save_image):
    for name in ("a.png", "_controls/a.png", "@eaDir/a.png/thumb.jpg", ".thumbnails/a.png",
                 "sub/_latent_cache/a.png", "a-masklabel.png", "__MACOSX/._a.png"):  # fmt: skip
        save_image(name)
    for name in ("a.txt", "a.caption", "a.jxl", "a.mp4", "meta.json", "more.zip", "Thumbs.db",
                 ".DS_Store", ".hidden.png", "sub/lost.txt"):  # fmt: skip
        (data / name).write_text("x")
    report = scan(data)
    assert names(report) == ["a.png"]
    assert left_out(report) == {
        "archive": ["more.zip"],
        "helper_file": ["a-masklabel.png"],
        "helper_folder": ["@eaDir/", "_controls/", "sub/_latent_cache/"],
        "hidden": [".hidden.png", ".thumbnails/"],
        "image_format": ["a.jxl"],
        "other_kind": ["a.mp4", "meta.json"],
        "system_file": [".DS_Store", "Thumbs.db", "__MACOSX/"],
        "unused_caption": ["a.caption"],
    }
    assert report.captions_without_image == ("sub/lost.txt",)


def test_lists_of_what_is_left_out_are_bounded_and_the_count_is_not(data, save_image):
    save_image("a.png")
    for number in range(150):
        (data / f"{number:03d}.mp4").touch()
    (one,) = scan(data).left_out
    assert (one.count, len(one.names)) == (150, 100)
    (finding,) = findings(scan(data))
    assert finding.text.startswith("150 files of other kinds are left out: 000.mp4, 001.mp4")
    assert finding.text.endswith("and 140 more")


def test_a_dataset_folder_may_itself_be_named_like_a_helper_folder(data, save_image):
    save_image("_controls/a.png")
    assert names(scan(data / "_controls")) == ["a.png"]


def test_captions_without_an_image_are_listed(data, save_image):
    save_image("a.png", caption="x")
    (data / "lost.txt").write_text("x")
    (data / "sub").mkdir()
    (data / "sub" / "a.txt").write_text("x")
    assert scan(data).captions_without_image == ("lost.txt", "sub/a.txt")


def test_the_hash_depends_on_the_content_alone(data, save_image, tmp_path):
    save_image("b.png", caption="x")
    save_image("a.jpg")
    first = scan(data)
    os.utime(data / "b.png", (1, 1))
    (data / "notes.md").write_text("x")
    copy = shutil.copytree(data, tmp_path / "copy")
    assert scan(data).sha256 == scan(copy).sha256 == first.sha256
    assert scan(data).images == first.images


@pytest.mark.parametrize("change", ["caption", "no caption", "pixels", "name", "more", "fewer"])
def test_every_change_of_the_content_changes_the_hash(data, save_image, change):
    save_image("a.png", caption="x")
    save_image("b.png", caption="y")
    before = scan(data).sha256
    if change == "caption":
        (data / "a.txt").write_text("z")
    elif change == "no caption":
        (data / "a.txt").unlink()
    elif change == "pixels":
        save_image("a.png", colour=(1, 2, 3))
    elif change == "name":
        (data / "a.png").rename(data / "c.png")
        (data / "a.txt").rename(data / "c.txt")
    elif change == "more":
        save_image("c.png")
    else:
        (data / "b.png").unlink()
    assert scan(data).sha256 != before


def test_an_empty_caption_and_a_missing_one_give_different_hashes(data, save_image):
    save_image("a.png", caption="")
    before = scan(data).sha256
    (data / "a.txt").unlink()
    assert scan(data).sha256 != before


def test_the_combined_hash_depends_on_the_order_of_the_folders(data, save_image, tmp_path):
    save_image("one/a.png")
    save_image("two/b.png")
    one, two = scan(data / "one"), scan(data / "two")
    assert combined_hash([one]) == one.sha256
    assert combined_hash([one, two]) != combined_hash([two, one])


def test_identical_images_are_reported_together(data, save_image):
    save_image("a.png")
    shutil.copy(data / "a.png", data / "b.png")
    save_image("c.png", colour=(1, 1, 1))
    shutil.copy(data / "a.png", data / "d.png")
    assert scan(data).duplicates == [["a.png", "b.png", "d.png"]]


def test_skipped_images_are_not_read(data, save_image):
    save_image("a.png")
    save_image("sub/b.png")
    only_a = scan(data, skip=["sub/b.png"])
    (data / "sub/b.png").write_bytes(b"broken")
    assert names(only_a) == ["a.png"]
    assert scan(data, skip={"sub/b.png"}) == only_a


def test_progress_counts_every_image_to_the_total(data, save_image):
    for name in "abc":
        save_image(f"{name}.png")
    (data / "c.png").write_bytes(b"")
    seen = []
    scan(data, skip=["a.png"], on_image=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "doesn't exist"),
        ("file", "is a file"),
        ("x" * 300, "dataset folder"),
        ("nul\0byte", "dataset folder"),
    ],
)
def test_a_folder_that_is_not_there_is_refused(tmp_path, name, words):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidDataset, match=words) as caught:
        scan(tmp_path / name)
    assert caught.value.remedy


def test_a_folder_without_usable_images_is_refused(data):
    with pytest.raises(InvalidDataset, match="no usable image"):
        require_usable(scan(data))


def test_bad_images_stop_a_training_and_are_all_named(data, save_image):
    save_image("a.png")
    (data / "b.png").write_bytes(b"")
    (data / "c.jpg").write_bytes(b"text")
    with pytest.raises(InvalidDataset, match="2 of 3 images") as caught:
        require_usable(scan(data))
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["b.png", "c.jpg"]


def test_bad_images_may_be_skipped_while_a_good_one_is_left(data, save_image):
    save_image("a.png")
    (data / "b.png").write_bytes(b"")
    require_usable(scan(data), on_bad_image="skip")
    (data / "a.png").unlink()
    with pytest.raises(InvalidDataset, match="no usable image") as caught:
        require_usable(scan(data), on_bad_image="skip")
    assert len(caught.value.problems) == 1


def test_damaged_exif_data_never_breaks_the_reading(data, save_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    path = save_image("a.jpg", exif=exif)
    whole = path.read_bytes()
    length_of_description = whole.index(exif.tobytes()) + 17
    assert whole[length_of_description] == 14
    changed = bytes([*whole[:length_of_description], 0, *whole[length_of_description + 1 :]])
    path.write_bytes(changed)
    report = scan(data)
    assert len(report.images) + len(report.problems) == 1


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_damaged_bytes_never_break_the_reading(kind):
    chance = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    buffer = BytesIO()
    image = Image.new("P" if kind == "png" else "RGB", (24, 16))
    image.save(buffer, kind, **({} if kind == "bmp" else {"exif": exif}))
    whole = buffer.getvalue()
    outcomes = {"read": 0, "refused": 0}
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            assert open_image(bytes(damaged), "x").pixels.mode == "RGB"
            outcomes["read"] += 1
        except InvalidDataset as error:
            assert error.message.startswith("x: ")
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


def test_fitting_crops_from_the_centre_to_the_exact_size():
    image = Image.new("RGB", (300, 100), "blue")
    image.paste("red", (100, 0, 200, 100))
    fitted = fit(image, 64, 64)
    assert fitted.size == (64, 64)
    assert fitted.getpixel((32, 32)) == (255, 0, 0)
    assert fitted.getpixel((3, 32))[0] > 200


def test_fitting_an_image_of_the_right_size_changes_nothing():
    image = Image.new("RGB", (64, 64), "blue")
    assert fit(image, 64, 64) is image
