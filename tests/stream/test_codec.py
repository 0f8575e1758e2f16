"""A slice comes back as it was, or not at all."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import ArtifactError
from pipeline.stream.codec import HEADER, decode_into, encode, webdataset_decoder

images = st.sampled_from([np.dtype("<i2"), np.dtype("u1")]).flatmap(
    lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(1, 24), st.integers(1, 24)))
)
CODECS = ["lz4", "none"]
NAME = "case_1_00012.ct.slice"


def decoded(member, like):
    out = np.full_like(like, 77)
    decode_into(member, out, NAME)
    return out


@given(images, st.sampled_from(CODECS))
def test_an_image_survives_the_round_trip_and_the_bytes_are_stable(image, codec):
    member = encode(image, NAME, codec)
    assert encode(np.asfortranarray(image), NAME, codec) == member
    np.testing.assert_array_equal(decoded(member, image), image)
    np.testing.assert_array_equal(decoded(memoryview(member), image), image)


IMAGES = {
    "smooth": np.add.outer(np.arange(9), np.arange(11)).astype(np.int16),
    "noise": np.random.default_rng(0).integers(-1024, 3000, (9, 11)).astype(np.int16),
    "mask": (np.add.outer(np.arange(9), np.arange(11)) > 9).astype(np.uint8),
}


def same_or_error(member, image):
    try:
        return np.array_equal(decoded(bytes(member), image), image)
    except ArtifactError:
        return True


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", IMAGES)
def test_no_altered_byte_goes_unnoticed(name, codec):
    image = IMAGES[name]
    member = encode(image, NAME, codec)
    for place in range(len(member)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(member)
            damaged[place] ^= change
            with pytest.raises(ArtifactError):
                decoded(bytes(damaged), image)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", IMAGES)
def test_no_cut_and_no_appended_byte_goes_unnoticed(name, codec):
    image = IMAGES[name]
    member = encode(image, NAME, codec)
    for stop in range(len(member)):
        with pytest.raises(ArtifactError):
            decoded(member[:stop], image)
    with pytest.raises(ArtifactError):
        decoded(member + b"\0", image)


@settings(max_examples=200)
@given(st.data(), st.sampled_from(CODECS))
def test_several_altered_bytes_are_an_error_or_harmless(data, codec):
    image = IMAGES["smooth"]
    damaged = bytearray(encode(image, NAME, codec))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert same_or_error(damaged, image)


@pytest.mark.parametrize("out", [np.zeros((11, 9), np.int16), np.zeros((9, 12), np.int16), np.zeros((9, 11), np.uint8)])
def test_another_shape_or_dtype_is_refused(out):
    with pytest.raises(ArtifactError, match="holds another image"):
        decode_into(encode(IMAGES["smooth"], NAME), out, NAME)


@pytest.mark.parametrize("image", [np.zeros((2, 2)), np.zeros((2, 2), np.int32), np.zeros((2, 2, 2), np.int16)])
def test_only_two_dimensional_int16_and_uint8_are_stored(image):
    with pytest.raises(ValueError, match="a slice is a 2D image"):
        encode(image, NAME)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", ["case_1_00013.ct.slice", "case_2_00012.ct.slice", "case_1_00012.cbct.slice", ""])
def test_a_sound_slice_under_another_name_is_refused(name, codec):
    with pytest.raises(ArtifactError, match="does not match its checksum"):
        decode_into(encode(IMAGES["smooth"], name, codec), np.zeros((9, 11), np.int16), NAME)


def forged(**changes):
    """A member whose header was rewritten, with a checksum that fits."""
    member = encode(np.zeros((64, 64), np.int16), NAME)
    fields = dict(
        zip(
            ("magic", "dtype", "codec", "rows", "columns", "zero", "stored"),
            HEADER.unpack_from(member)[1:],
            strict=True,
        )
    )
    payload = changes.pop("payload", member[HEADER.size :])
    body = HEADER.pack(0, *{**fields, "stored": len(payload), **changes}.values())[8:] + payload
    return xxhash.xxh3_64_intdigest(body, xxhash.xxh3_64_intdigest(NAME.encode())).to_bytes(8, "little") + body


PAYLOAD = encode(np.zeros((64, 64), np.int16), NAME)[HEADER.size :]


def announcing(voxel_bytes):
    """blosc's payload with another decoded size in its header."""
    return PAYLOAD[:4] + (voxel_bytes % 2**32).to_bytes(4, "little") + PAYLOAD[8:]


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 65535, "columns": 65535},
        {"rows": 65535, "columns": 65535, "payload": announcing(65535**2 * 2)},
        {"rows": 4096, "columns": 4096, "payload": announcing(4096**2 * 2)},
        {"payload": PAYLOAD[:12] + (len(PAYLOAD) + 4000).to_bytes(4, "little") + PAYLOAD[16:]},
        {"payload": PAYLOAD[:15]},
        {"codec": 0},
        {"codec": 9},
        {"dtype": 9},
        {"zero": 1},
        {"stored": 7},
    ],
)  # fmt: skip
def test_a_header_that_promises_what_its_bytes_cannot_hold_is_refused_before_memory_is_taken(changes):
    with pytest.raises(ArtifactError):
        webdataset_decoder({"__key__": "case_1_00012", "ct.slice": forged(**changes)})


def test_a_forged_member_is_otherwise_sound():
    sample = webdataset_decoder({"__key__": "case_1_00012", "ct.slice": forged()})
    assert not sample["ct"].any()


def test_a_slice_of_an_older_version_says_what_to_run():
    old = b"CVX1" + bytes(60)
    with pytest.raises(ArtifactError, match=r"another version of Cinevox.*Run 'cinevox preprocess' again"):
        decode_into(old, np.zeros((2, 2), np.int16), NAME)


def test_the_exported_decoder_restores_the_arrays_and_nothing_else():
    sample = {
        "__key__": "case_1_00012",
        "__url__": "x.tar",
        "ct.slice": encode(IMAGES["noise"], NAME),
        "mask.slice": encode(IMAGES["mask"], "case_1_00012.mask.slice", "none"),
        "evil.pkl": b"cos\nsystem\n(S'touch /tmp/x'\ntR.",
    }
    out = webdataset_decoder(sample)
    assert set(out) == {"__key__", "case_id", "slice_index", "ct", "mask"}
    assert (out["case_id"], out["slice_index"]) == ("case_1", 12)
    np.testing.assert_array_equal(out["ct"], IMAGES["noise"])
    np.testing.assert_array_equal(out["mask"], IMAGES["mask"])
    sample["ct.slice"] = sample["ct.slice"][:-1]
    with pytest.raises(ArtifactError, match=r"case_1_00012\.ct\.slice"):
        webdataset_decoder(sample)
