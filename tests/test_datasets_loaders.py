"""Loaders of datasets: file formats written here, downloads from a local server, and download errors."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import image as mpl_image
from scipy import sparse
from vendor_folders import write_matrix

import stxtools as st
from stxtools.datasets._public import REGISTRY

H5 = "V1_Adult_Mouse_Brain_filtered_feature_bc_matrix.h5"
TAR = "V1_Adult_Mouse_Brain_spatial.tar.gz"
TENX = dict(REGISTRY["visium_mouse_brain"])


class Server:
    """Serves files by name; of those in ``cut`` only the first half, with the length of the whole."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                outer.requests.append(name)
                if name not in outer.files:
                    self.send_error(404)
                    return
                body = outer.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if name in outer.cut else body)

            def log_message(self, *args: object) -> None:
                """Keep the test output quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/set"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def datasetdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    monkeypatch.setattr(st.settings, "datasetdir", folder)
    return folder


def _spatial_tar(n_spots: int, folder: str = "spatial") -> bytes:
    """Space Ranger 1's spatial folder: positions without a header, all spots of the slide in another order."""
    rows = [f"AAAC{i:04d}-1,1,{i},{i % 2},{100 * i},{10 * i}" for i in reversed(range(n_spots))]
    rows.append("TTTT0000-1,0,77,1,5,5")
    buffer = io.BytesIO()
    mpl_image.imsave(buffer, np.zeros((4, 5, 3), dtype=np.uint8), format="png")
    scales = {"spot_diameter_fullres": 8.9, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.05}
    members = {
        "tissue_positions_list.csv": "\n".join(rows).encode(),
        "scalefactors_json.json": json.dumps(scales).encode(),
        "tissue_hires_image.png": buffer.getvalue(),
        "tissue_lowres_image.png": buffer.getvalue(),
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(1.0, size=(6, 5))


@pytest.fixture
def tenx(server: Server, datasetdir: Path, tmp_path: Path, counts: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve a small section in place of 10x Genomics'; return the folder in which it lands."""
    names = [f"AAAC{i:04d}-1" for i in range(len(counts))]
    genes = ("Twin", "Twin", "Gene2", "Gene3", "Gene4")  # as in the real file, two genes share a symbol
    write_matrix(tmp_path / "made.h5", names, "V1_Adult_Mouse_Brain", values=counts, genes=genes)
    server.files = {H5: (tmp_path / "made.h5").read_bytes(), TAR: _spatial_tar(len(counts))}
    hashes = {name: _sha(body) for name, body in server.files.items()}
    monkeypatch.setitem(REGISTRY, "visium_mouse_brain", TENX | {"url": server.url, "files": hashes})
    return datasetdir / "visium_mouse_brain"


@pytest.fixture
def vizgen(server: Server, datasetdir: Path, counts: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve a small section in place of Vizgen's; return the folder in which it lands."""
    cells = [str(110883424764611924400221639916314253469 + i) for i in range(len(counts))]
    genes = ["PDK4", "CX3CR1", "CD4", "Blank-1", "Blank-2"]
    meta = pd.DataFrame(
        {"fov": 0, "volume": 500.0, "center_x": np.arange(6) * 10.5, "center_y": 7.0 - np.arange(6)}, index=cells
    )
    server.files = {
        "cell_by_gene.csv": pd.DataFrame(counts, index=pd.Index(cells, name="cell"), columns=genes).to_csv().encode(),
        "cell_metadata.csv": meta.iloc[::-1].to_csv().encode(),
    }
    monkeypatch.setitem(REGISTRY["merfish_breast_cancer"], "url", server.url)
    return datasetdir / "merfish_breast_cancer"


def _sha(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_visium_mouse_brain_is_read_and_downloaded_once(tenx: Path, server: Server, counts: np.ndarray) -> None:
    adata = st.datasets.visium_mouse_brain()
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert adata.X.dtype == np.float32
    assert adata.var_names.is_unique
    assert adata.obsm["spatial"].dtype == np.float64
    # x is the column and y the row of the image, whatever the order of the file
    np.testing.assert_array_equal(adata.obsm["spatial"], np.column_stack([10 * np.arange(6), 100 * np.arange(6)]))
    np.testing.assert_array_equal(adata.obs["array_row"], np.arange(6))
    library = adata.uns["spatial"]["V1_Adult_Mouse_Brain"]
    assert set(library["images"]) == {"hires", "lowres"}
    assert library["scalefactors"]["spot_diameter_fullres"] == 8.9
    assert sorted(p.name for p in tenx.iterdir()) == sorted([H5, TAR, "spatial"])
    again = st.datasets.visium_mouse_brain()
    np.testing.assert_array_equal(again.X.toarray(), counts)
    assert server.requests == [H5, TAR]  # the second call used the first one's files


def test_registry_has_functions_sources_and_checksums() -> None:
    assert set(REGISTRY) <= set(st.datasets.__all__)
    assert all(("source" in entry) != ("url" in entry) and entry["publication"] for entry in REGISTRY.values())
    assert set(TENX["files"]) == {H5, TAR}
    for value in TENX["files"].values():
        assert value.startswith("sha256:")
        assert len(bytes.fromhex(value.removeprefix("sha256:"))) == 32


def test_hallmark_gene_sets_are_checked_and_downloaded_once(
    server: Server, datasetdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"HALLMARK_ONE\thttp://a\tG1\tG2\nHALLMARK_TWO\thttp://b\tG2\tG3\tG4\n"
    source = REGISTRY["hallmark_gene_sets"]
    [file] = source["files"]
    server.files = {file: body}
    monkeypatch.setitem(source, "url", server.url)
    with pytest.raises(ValueError, match="hash"):  # not the file that the checksum is of
        st.datasets.hallmark_gene_sets()
    assert _files(datasetdir) == []
    monkeypatch.setitem(source, "files", {file: _sha(body)})
    net = st.datasets.hallmark_gene_sets()
    assert net.groupby("source")["target"].agg(list).to_dict() == {"ONE": ["G1", "G2"], "TWO": ["G2", "G3", "G4"]}
    pd.testing.assert_frame_equal(st.datasets.hallmark_gene_sets(), net)
    assert len(server.requests) == 2


FAILED = {
    "missing file": ("tenx", {}, ConnectionError, r"404.*Nothing was kept.*10xgenomics.*save the file as .*matrix\.h5"),
    "wrong content": ("tenx", {H5: b"another file"}, ValueError, "hash"),
    "no server": ("tenx", None, ConnectionError, "by hand"),
    "refused": ("vizgen", {}, ConnectionError, r"register at https://info\.vizgen\.com.*cell_by_gene\.csv and call"),
}


@pytest.mark.parametrize("case", FAILED)
def test_failed_download_raises_and_keeps_no_file(
    case: str, request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor, files, error, match = FAILED[case]
    folder = request.getfixturevalue(vendor)
    server.files = files or {}
    if files is None:
        monkeypatch.setitem(REGISTRY[folder.name], "url", "http://127.0.0.1:9/set")
    with pytest.raises(error, match=match):
        getattr(st.datasets, folder.name)()
    assert _files(folder.parent) == []


def test_full_disk_is_not_called_a_failed_connection(
    tenx: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "move", fail)  # by which pooch puts a complete file into its place
    with pytest.raises(OSError, match="No space left") as caught:
        st.datasets.visium_mouse_brain()
    assert type(caught.value) is OSError
    assert _files(tenx.parent) == []


def test_truncated_download_is_not_kept(tenx: Path, server: Server, counts: np.ndarray) -> None:
    server.cut = {TAR}
    with pytest.raises(ConnectionError, match="Nothing was kept"):
        st.datasets.visium_mouse_brain()
    assert [p.name for p in tenx.iterdir()] == [H5]  # complete, checked: kept
    server.cut = set()
    np.testing.assert_array_equal(st.datasets.visium_mouse_brain().X.toarray(), counts)


def test_changed_file_is_downloaded_again(tenx: Path, server: Server, counts: np.ndarray) -> None:
    st.datasets.visium_mouse_brain()
    (tenx / H5).write_bytes((tenx / H5).read_bytes()[:-7])
    np.testing.assert_array_equal(st.datasets.visium_mouse_brain().X.toarray(), counts)
    assert server.requests == [H5, TAR, H5]


def test_unusable_archive_raises(tenx: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (_spatial_tar(3, folder="other"), _spatial_tar(6)[:-200]):
        server.files[TAR] = body
        monkeypatch.setitem(REGISTRY["visium_mouse_brain"]["files"], TAR, _sha(body))
        with pytest.raises(ValueError, match="cannot be unpacked"):
            st.datasets.visium_mouse_brain()
        assert sorted(p.name for p in tenx.iterdir()) == sorted([H5, TAR])
        (tenx / TAR).unlink()


def test_merfish_breast_cancer_separates_blank_genes(vizgen: Path, server: Server, counts: np.ndarray) -> None:
    adata = st.datasets.merfish_breast_cancer()
    assert sparse.issparse(adata.X)
    np.testing.assert_array_equal(adata.X.toarray(), counts[:, :3])
    assert list(adata.var_names) == ["PDK4", "CX3CR1", "CD4"]
    np.testing.assert_array_equal(adata.obsm["blank_genes"].to_numpy(), counts[:, 3:])
    np.testing.assert_allclose(adata.obsm["spatial"], np.column_stack([np.arange(6) * 10.5, 7.0 - np.arange(6)]))
    assert (adata.obs["volume"] == 500).all()
    st.datasets.merfish_breast_cancer()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("file", "old", "new", "match"),
    [
        ("cell_by_gene.csv", b"469,1,", b"469,-1,", "values other than counts"),
        ("cell_by_gene.csv", b"469,1,", b"469,0.5,", "values other than counts"),
        ("cell_by_gene.csv", b"469,1,", b"469,x,", "other than those"),
        ("cell_by_gene.csv", b"469,1,", b"999,1,", "other than those"),
        ("cell_metadata.csv", b"center_x", b"centre_x", "other than those"),
    ],
)
def test_tables_without_a_checksum_are_validated(
    vizgen: Path, server: Server, file: str, old: bytes, new: bytes, match: str
) -> None:
    assert old in server.files[file]
    server.files[file] = server.files[file].replace(old, new, 1)
    with pytest.raises(ValueError, match=match) as info:
        st.datasets.merfish_breast_cancer()
    assert "cell_by_gene.csv" in str(info.value)


def test_damaged_h5ad_raises(datasetdir: Path) -> None:
    datasetdir.mkdir(parents=True)
    (datasetdir / "dlpfc_151673.h5ad").write_bytes(b"not a section")
    with pytest.raises(ValueError, match=r"dlpfc_151673\.h5ad.*cannot be read as a section"):
        st.datasets.dlpfc()


def test_files_placed_by_hand_are_used(vizgen: Path, server: Server) -> None:
    vizgen.mkdir(parents=True)
    for name, body in server.files.items():
        (vizgen / name).write_bytes(body)
    assert st.datasets.merfish_breast_cancer().n_obs == 6
    assert server.requests == []


def test_interrupted_download_leaves_no_file(vizgen: Path, datasetdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch

    def interrupted(self: object, url: str, output_file: str, *args: object, **kwargs: object) -> None:
        Path(output_file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        st.datasets.merfish_breast_cancer()
    assert _files(datasetdir) == []


def _stereo_seq_file(path: Path, counts: np.ndarray, *, layer: str, label: str) -> bytes:
    """One section as STOmicsDB has them: logarithms in X, counts in a layer, labels, positions."""
    adata = ad.AnnData(np.log1p(counts).astype(np.float32))
    adata.obs_names = [f"cell{i}" for i in range(len(counts))]
    adata.var_names = [f"Gene{j}" for j in range(counts.shape[1])]
    adata.layers[layer] = sparse.csr_matrix(counts)
    adata.obs[label] = pd.Categorical(["Brain", "Heart"] * (len(counts) // 2))
    adata.obsm["spatial"] = np.column_stack([np.arange(len(counts)), np.arange(len(counts))])
    adata.write_h5ad(path)
    return path.read_bytes()


def test_stereo_seq_series_have_counts_times_and_subjects(
    server: Server, datasetdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: np.ndarray
) -> None:
    for series in ("mosta", "axolotl_regeneration"):
        monkeypatch.setitem(REGISTRY[series], "url", server.url)
    for name in ("E9.5_E1S1", "E10.5_E2S1"):
        server.files[f"{name}.MOSTA.h5ad"] = _stereo_seq_file(
            tmp_path / "m.h5ad", counts, layer="count", label="annotation"
        )
    server.files["2DPI_1.h5ad"] = _stereo_seq_file(tmp_path / "a.h5ad", counts, layer="counts", label="Annotation")
    adata = st.datasets.mosta(["E9.5_E1S1", "E10.5_E2S1"])
    np.testing.assert_array_equal(adata.X.toarray(), np.vstack([counts, counts]))
    times = adata.obs.groupby("section", observed=True)["time"].first().to_dict()
    assert times == {"E9.5_E1S1": 9.5, "E10.5_E2S1": 10.5}
    assert list(adata.obs["subject"].cat.categories) == ["E10.5_E2", "E9.5_E1"]
    assert adata.obs_names.is_unique
    one = st.datasets.axolotl_regeneration()
    assert set(one.obs["annotation"]) == {"Brain", "Heart"}
    assert "subject" not in one.obs
    assert set(one.obs["time"]) == {2.0}
    n = len(server.requests)
    st.datasets.axolotl_regeneration("2DPI_1")
    assert len(server.requests) == n
    with pytest.raises(ConnectionError, match="artista"):
        st.datasets.axolotl_regeneration("5DPI_1")
    with pytest.raises(ValueError, match=r"E9\.5_E1S1"):
        st.datasets.mosta("../E9.5")
    server.files["E11.5_E1S1.MOSTA.h5ad"] = server.files["2DPI_1.h5ad"][:500]
    with pytest.raises(ValueError, match="not a section of this series"):
        st.datasets.mosta("E11.5_E1S1")
