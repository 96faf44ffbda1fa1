import os

import jax
import pytest

from experiments import compilation_cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that holds the cache; jax's own settings are put back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAXGEN_COMPILATION_CACHE", raising=False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield tmp_path / "jaxgen"
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_the_users_alone_and_named_by_jax_and_processor(cache, monkeypatch):
    monkeypatch.setattr(compilation_cache, "cpu_features", lambda: "avx2")
    old = os.umask(0)
    try:
        folder = compilation_cache.enable()
    finally:
        os.umask(old)
    assert folder.parent == cache
    assert folder.name.startswith(f"{jax.__version__}-")
    assert [path.stat().st_mode & 0o777 for path in (cache, folder)] == [0o700, 0o700]
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert compilation_cache.enable() == folder
    monkeypatch.setattr(compilation_cache, "cpu_features", lambda: "avx512")
    assert compilation_cache.enable() != folder


def test_a_readable_folder_of_the_user_is_closed(cache):
    cache.mkdir(mode=0o755)
    assert compilation_cache.enable().stat().st_mode & 0o777 == 0o700
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("fault", ["writable", "foreign", "link", "file"])
def test_an_unsafe_folder_is_not_used(cache, capsys, fault, level):
    unsafe = cache
    if level:
        unsafe = compilation_cache.enable()
        unsafe.rmdir()
    jax.config.update("jax_compilation_cache_dir", None)
    said = {"writable": "is writable by other users", "foreign": "belongs to another user"}.get(fault, "exist")
    if fault == "writable":
        unsafe.mkdir()
        unsafe.chmod(0o770)
    elif fault == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        unsafe.mkdir()
        os.chown(unsafe, 12345, 12345)
    elif fault == "link":
        (cache.parent / "elsewhere").mkdir()
        unsafe.symlink_to(cache.parent / "elsewhere")
        said = "is not a folder"
    else:
        unsafe.write_text("")
    assert compilation_cache.enable() is None
    err = capsys.readouterr().err
    assert err.startswith("note: compiling without the persistent cache: ")
    assert said in err
    assert err.count("\n") == 1
    assert jax.config.jax_compilation_cache_dir is None


def test_it_is_switched_off_by_the_environment(cache, monkeypatch):
    monkeypatch.setenv("JAXGEN_COMPILATION_CACHE", "off")
    assert compilation_cache.enable() is None
    assert not cache.exists()
