import io
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from jaxgen.statistics import feature_files
from jaxgen.statistics.feature_files import load_feature_moments, load_features, save_feature_moments, save_features
from jaxgen.statistics.feature_moments import FeatureMoments, Features

ENDINGS = [".npz", ".safetensors"]
MOMENTS = FeatureMoments(np.array([0.1, -0.2]), np.array([[2, 0.5], [0.5, 1]]), 1300, "pca-2-0f")
FEATURES = Features(np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32), "mine")


def write_npz(path, members, compression=zipfile.ZIP_STORED):
    """Write an archive of .npy members, each an array or the bytes to stand there."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            if not isinstance(content, bytes):
                file = io.BytesIO()
                np.lib.format.write_array(file, np.asarray(content), allow_pickle=True)
                content = file.getvalue()
            archive.writestr(f"{name}.npy", content)


def write_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def sound():
    return {"mu": np.zeros(2), "sigma": np.eye(2), "num_images": np.array(9), "feature_id": np.array("mine")}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, ending):
    save_feature_moments(tmp_path / f"moments{ending}", MOMENTS)
    loaded = load_feature_moments(tmp_path / f"moments{ending}")
    np.testing.assert_array_equal(loaded.mean, MOMENTS.mean)
    np.testing.assert_array_equal(loaded.covariance, MOMENTS.covariance)
    assert loaded[2:] == MOMENTS[2:]
    for dtype in (np.float32, np.float64):
        save_features(tmp_path / f"features{ending}", FEATURES._replace(values=FEATURES.values.T.astype(dtype)))
        found = load_features(str(tmp_path / f"features{ending}"))
        assert found.values.dtype == dtype
        np.testing.assert_array_equal(found.values, FEATURES.values.T)
        assert found.feature_id == "mine"
    assert sorted(os.listdir(tmp_path)) == [f"features{ending}", f"moments{ending}"]


def test_files_are_those_that_other_programs_read(tmp_path):
    save_feature_moments(tmp_path / "m.npz", MOMENTS)
    with np.load(tmp_path / "m.npz", allow_pickle=False) as stored:
        assert sorted(stored) == ["feature_id", "mu", "num_images", "sigma"]
        assert (int(stored["num_images"]), str(stored["feature_id"])) == (1300, "pca-2-0f")
    save_feature_moments(tmp_path / "m.safetensors", MOMENTS)
    with safetensors.safe_open(tmp_path / "m.safetensors", "np") as stored:
        assert stored.metadata() == {"feature_id": "pca-2-0f"}
        np.testing.assert_array_equal(stored.get_tensor("sigma"), MOMENTS.covariance)


def test_files_of_other_programs_are_read(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", **sound() | {"sigma": np.eye(2, dtype=np.float32), "num_images": [9]})
    assert load_feature_moments(tmp_path / "m.npz").covariance.dtype == np.float64
    np.savez_compressed(tmp_path / "zeros.npz", features=np.zeros((3000, 100)), feature_id="mine")
    assert load_features(tmp_path / "zeros.npz").values.shape == (3000, 100)
    arrays = {name: array for name, array in sound().items() if name != "feature_id"}
    safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors", {"feature_id": "mine", "made_by": "us"})
    assert load_feature_moments(tmp_path / "m.safetensors").num_images == 9


class Canary:
    def __reduce__(self):
        return os.mkdir, (os.environ["JAXGEN_CANARY"],)


def test_pickled_objects_are_not_executed(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setenv("JAXGEN_CANARY", str(canary))
    objects = np.array([Canary()], object)
    write_npz(tmp_path / "a.npz", sound() | {"mu": objects})
    write_npz(tmp_path / "b.npz", sound() | {"mu": pickle.dumps(Canary())})
    write_npz(tmp_path / "c.npz", {"features": objects, "feature_id": objects})
    (tmp_path / "d.npz").write_bytes(pickle.dumps(Canary()))
    (tmp_path / "e.safetensors").write_bytes(pickle.dumps(Canary()))
    for file in sorted(tmp_path.iterdir()):
        for load in (load_feature_moments, load_features):
            with pytest.raises(ValueError, match=rf"{file.name} cannot be read as a file of "):
                load(file)
    assert not canary.exists()
    with pytest.raises(ValueError, match="holds pickled objects, which are not read"):
        load_feature_moments(tmp_path / "a.npz")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_cut_file_is_refused_at_every_length(tmp_path, ending):
    path = tmp_path / f"m{ending}"
    save_feature_moments(path, MOMENTS)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read as a file of mu, sigma, num_images: "):
            load_feature_moments(path)


def test_no_flipped_byte_does_anything_but_be_refused_or_change_a_number(tmp_path):
    rng = np.random.default_rng(0)
    for ending in ENDINGS:
        path = tmp_path / f"m{ending}"
        save_feature_moments(path, MOMENTS)
        whole = path.read_bytes()
        for _ in range(200):
            bent = bytearray(whole)
            bent[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            path.write_bytes(bent)
            try:
                found = load_feature_moments(path)
            except ValueError as error:
                assert str(error).startswith(f"{path} cannot be read")  # noqa: PT017
            else:
                assert found.covariance.shape == (2, 2)
                assert np.all(np.isfinite(found.covariance))


NPZ = [
    ({"sigma": np.eye(3)}, r"got \[2\] and \[3, 3\]"),
    ({"mu": np.array([0, np.nan])}, "mean must be finite"),
    ({"sigma": np.array([[1, 0.5], [0, 1]])}, "symmetric"),
    ({"sigma": np.diag([1.0, -1])}, "variances must be at least 0"),
    ({"num_images": np.array(1)}, "num_images must be at least 2, got 1"),
    ({"num_images": np.array(9.0)}, "num_images must be one integer, got float64"),
    ({"num_images": np.array([9, 9])}, r"num_images must be one integer, got int64 \[2\]"),
    ({"mu": np.zeros(2, complex)}, "mu must be float16, float32 or float64, got complex128"),
    ({"mu": np.zeros(2, [("a", "f8")])}, "mu must be float"),
    ({"feature_id": np.array(7)}, "feature_id must be one text, got int64"),
    ({"feature_id": np.array("two words")}, "a feature id is"),
    ({"feature_id": np.array("inception-2048")}, "2048 pool features, got 2"),
    ({"extra": np.zeros(2)}, "it must hold feature_id, mu, num_images, sigma, got mu, sigma"),
    ({"mu": b"not an array"}, "mu.npy|magic"),
    ({"mu": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8'"}, "EOF|header"),
]


@pytest.mark.parametrize(("changes", "message"), NPZ)
def test_unsound_npz_are_refused(tmp_path, changes, message):
    write_npz(tmp_path / "m.npz", sound() | changes)
    with pytest.raises(ValueError, match=f"m.npz cannot be read as a file of mu, sigma, num_images: .*({message})"):
        load_feature_moments(tmp_path / "m.npz")


def test_npz_without_an_id_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(ValueError, match="it must hold feature_id, mu, num_images, sigma, got mu, sigma"):
        load_feature_moments(tmp_path / "m.npz")


def npy(shape, data=b"", descr="<f8"):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def spec(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = [
    (b"", "header claims 0 bytes"),
    (b"[1, 2]", "no feature_id"),
    (b"{" * 60_000, ""),
    ({"features": spec("F32", [2, 3], 0, 24)}, "no feature_id"),
    ({"__metadata__": {"feature_id": "mine"}}, "it must hold features, got nothing"),
    ({"__metadata__": {"feature_id": "mine"}, "features": spec("F32", [2**20, 2**20], 0, 2**42)}, ""),
    ({"__metadata__": {"feature_id": "mine"}, "features": spec("F32", [2, 3], 0, 2**42)}, ""),
    ({"__metadata__": {"feature_id": "mine"}, "features": spec("F32", [2, 4], 0, 24)}, ""),
    ({"__metadata__": {"feature_id": "mine"}, "features": spec("F32", [6], 0, 24)}, r"\[num_images, dim\]"),
    ({"__metadata__": {"feature_id": "mine"}, "features": spec("I32", [2, 3], 0, 24)}, "must be float16"),
    ({"__metadata__": {"feature_id": 7}, "features": spec("F32", [2, 3], 0, 24)}, ""),
]


@pytest.mark.parametrize(("header", "message"), SAFETENSORS)
def test_unsound_safetensors_are_refused(tmp_path, header, message):
    write_safetensors(tmp_path / "f.safetensors", header, bytes(24))
    with pytest.raises(ValueError, match=f"f.safetensors cannot be read as a file of features: .*{message}"):
        load_features(tmp_path / "f.safetensors")


def test_sizes_that_the_file_cannot_hold_are_refused_before_memory_is_taken(tmp_path):
    write_npz(tmp_path / "claim.npz", {"features": npy((2**20, 2**20), bytes(64)), "feature_id": "mine"})
    write_npz(tmp_path / "less.npz", {"features": npy((2, 2), bytes(64)), "feature_id": "mine"})
    write_npz(tmp_path / "negative.npz", {"features": npy((-2, -4), bytes(64)), "feature_id": "mine"})
    write_npz(tmp_path / "text.npz", {"features": np.ones((2, 2)), "feature_id": npy((), b"", f"<U{2**28}")})
    (tmp_path / "header.safetensors").write_bytes((2**40).to_bytes(8, "little") + bytes(100))
    (tmp_path / "sparse.safetensors").write_bytes((2**35).to_bytes(8, "little"))
    os.truncate(tmp_path / "sparse.safetensors", 2**36)
    bomb = io.BytesIO(bytes(10**7))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", bomb.getvalue())
        archive.writestr("feature_id.npy", npy((), "mine".encode("utf-32-le"), "<U4"))
    content = (tmp_path / "bomb.npz").read_bytes()
    # Both size fields of the member, local and central, say 2^31 instead.
    (tmp_path / "lie.npz").write_bytes(content.replace((10**7).to_bytes(4, "little"), (2**31).to_bytes(4, "little")))
    # Under an address space that holds the imports and little more.
    code = (
        "import resource, sys; from jaxgen.statistics import load_features; import safetensors, zipfile\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 2**28\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_features(path)\n"
        "    except ValueError as error: print(error)\n"
    )
    files = sorted(str(file) for file in tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=100, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(files) == 8
    for file, line in zip(files, lines, strict=True):
        assert line.startswith(f"{file} cannot be read as a file of features: ")
        assert "allocate" not in line
        assert "MemoryError" not in line
    assert "claims 2147483648 bytes, which the file cannot hold" in lines[files.index(str(tmp_path / "lie.npz"))]


def test_more_bytes_than_the_limit_are_refused(tmp_path, monkeypatch):
    save_features(tmp_path / "f.npz", FEATURES)
    save_features(tmp_path / "f.safetensors", FEATURES)
    monkeypatch.setattr(feature_files, "LARGEST", 100)
    for ending in ENDINGS:
        with pytest.raises(ValueError, match="bytes of arrays, more than 100"):
            load_features(tmp_path / f"f{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(tmp_path, ending):
    path = tmp_path / f"f{ending}"
    save_features(path, FEATURES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = Features(np.ones((1000, 100)), "mine")
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(OSError, match="too large"):
            save_features(path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == [path.name]
    np.testing.assert_array_equal(load_features(path).values, FEATURES.values)


def test_unsound_features_and_other_endings_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="features must be finite"):
        save_features(tmp_path / "f.npz", FEATURES._replace(values=np.full((2, 2), np.nan)))
    with pytest.raises(ValueError, match="symmetric"):
        save_feature_moments(tmp_path / "m.npz", MOMENTS._replace(covariance=np.array([[1.0, 1], [0, 1]])))
    for name in ("f.pt", "f.pkl", "f"):
        with pytest.raises(ValueError, match=r"ends in .npz or .safetensors, got 'f"):
            save_features(tmp_path / name, FEATURES)
        with pytest.raises(ValueError, match=r"ends in .npz or .safetensors, got 'f"):
            load_features(tmp_path / name)
    assert not os.listdir(tmp_path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.npz"):
        load_features(tmp_path / "none.npz")
