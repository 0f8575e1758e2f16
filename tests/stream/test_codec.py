"""A slice comes back as it was, or not at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import ArtifactError
from pipeline.stream.codec import HEADER, checksum, decode_into, encode, webdataset_decoder

images = st.sampled_from([np.dtype("<i2"), np.dtype("u1")]).flatmap(
    lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(1, 24), st.integers(1, 24)))
)
CODECS = ["lz4", "none"]


def decoded(member, like):
    out = np.full_like(like, 77)
    decode_into(member, out, "it")
    return out


@settings(deadline=None)
@given(images, st.sampled_from(CODECS))
def test_an_image_survives_the_round_trip_and_the_bytes_are_stable(image, codec):
    member = encode(image, codec)
    assert encode(np.asfortranarray(image), codec) == member
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
    member = encode(image, codec)
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
    member = encode(image, codec)
    for stop in range(len(member)):
        with pytest.raises(ArtifactError):
            decoded(member[:stop], image)
    with pytest.raises(ArtifactError):
        decoded(member + b"\0", image)


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from(CODECS))
def test_several_altered_bytes_are_an_error_or_harmless(data, codec):
    image = IMAGES["smooth"]
    damaged = bytearray(encode(image, codec))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert same_or_error(damaged, image)


@pytest.mark.parametrize("out", [np.zeros((11, 9), np.int16), np.zeros((9, 12), np.int16), np.zeros((9, 11), np.uint8)])
def test_another_shape_or_dtype_is_refused(out):
    with pytest.raises(ArtifactError, match="it holds another image"):
        decode_into(encode(IMAGES["smooth"]), out, "it")


@pytest.mark.parametrize("image", [np.zeros((2, 2)), np.zeros((2, 2), np.int32), np.zeros((2, 2, 2), np.int16)])
def test_only_two_dimensional_int16_and_uint8_are_stored(image):
    with pytest.raises(ValueError, match="a slice is a 2D image"):
        encode(image)


def test_the_checksum_of_a_member_can_be_read_without_decoding_it():
    a, b = encode(IMAGES["smooth"]), encode(IMAGES["noise"])
    assert checksum(a) == HEADER.unpack(a[: HEADER.size])[-1]
    assert checksum(a) != checksum(b)
    assert checksum(b"") == 0


def test_the_exported_decoder_restores_the_arrays_and_nothing_else():
    sample = {
        "__key__": "case_1_00012",
        "__url__": "x.tar",
        "ct.slice": encode(IMAGES["noise"]),
        "mask.slice": encode(IMAGES["mask"], "none"),
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
