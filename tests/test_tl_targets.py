"""tl.targets on small files in the formats of DGIdb and Open Targets."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same, read_back
from scipy import sparse

import stxtools as st

GENES = ["ERBB2", "EGFR", "Esr1", "OLDNAME", "NOTHING", "TWICE"]
IDS = ["ENSG00000141736.14", "ENSG00000146648", "ENSG00000091831", "ENSG00000000003", "ENSG00000000005", "ENSG9"]

INTERACTIONS = """gene_claim_name\tgene_concept_id\tgene_name\tinteraction_source_db_name\tinteraction_source_db_version\tinteraction_type\tinteraction_score\tdrug_claim_name\tdrug_concept_id\tdrug_name\tapproved\timmunotherapy\tanti_neoplastic
ERBB2\thgnc:3430\tERBB2\tA\t1\tinhibitor\t0.5\tlapa\tr:1\tLAPATINIB\tTRUE\tFALSE\tTRUE
ERBB2\thgnc:3430\tERBB2\tB\t1\tNULL\tNULL\tlapa2\tr:1\tLAPATINIB\tTRUE\tFALSE\tTRUE
ERBB2\thgnc:3430\tERBB2\tB\t1\tantibody\t1.25\tx\tr:2\tCANDIDATE-1\tFALSE\tFALSE\tTRUE
ERBB2\thgnc:3430\tERBB2\tB\t1\tinhibitor\t0.1\ttrastu\tr:3\tTRASTUZUMAB\tTRUE\tFALSE\tTRUE
ESR1\thgnc:3467\tESR1\tB\t1\tantagonist\t2.0\ttamo\tr:4\tTAMOXIFEN\tTRUE\tFALSE\tTRUE
OLDNAME\thgnc:1\tNEWNAME\tB\t1\tNULL\t0.3\ty\tr:5\tSOMEDRUG\tFALSE\tFALSE\tFALSE
NULL\tNULL\tNULL\tB\t1\tNULL\t0.3\ty\tr:5\tSOMEDRUG\tFALSE\tFALSE\tFALSE
"""  # noqa: E501


@pytest.fixture
def adata() -> ad.AnnData:
    out = ad.AnnData(sparse.csr_matrix(np.ones((4, len(GENES)), dtype=np.float32)))
    out.var_names = GENES
    table = pd.DataFrame({"group": "tumour", "names": GENES[::-1], "scores": np.arange(6.0)[::-1], "pvals_adj": 0.5})
    out.uns["biomarkers"] = table.astype({"group": str, "names": str})
    return out


@pytest.fixture
def interactions(tmp_path: Path) -> Path:
    path = tmp_path / "interactions.tsv"
    path.write_text(INTERACTIONS)
    return path


def _joined(adata: ad.AnnData, table: object, match: str = "not in it", **kwargs: object) -> pd.DataFrame:
    """Join a table, which warns of genes that are not in it."""
    with pytest.warns(UserWarning, match=match):
        st.tl.targets(adata, table, **kwargs)
    return adata.uns["biomarkers"].set_index("names")


def test_dgidb_interactions_are_summarised_by_gene(adata, interactions):
    table = _joined(adata, interactions, r"5 are not in it .*1 differ .* only by case.*1 have an outdated")
    row = table.loc["ERBB2"]
    assert (row["n_drugs"], row["n_approved_drugs"]) == (3, 2)
    assert row["drugs"] == "LAPATINIB; TRASTUZUMAB; CANDIDATE-1"
    assert row["interaction_types"] == "inhibitor; antibody"
    assert row["interaction_score"] == 1.25
    assert row["in_dgidb_interactions"]
    none = table.loc["NOTHING"]
    assert (none["n_drugs"], none["drugs"], bool(none["in_dgidb_interactions"])) == (0, "", False)
    assert np.isnan(none["interaction_score"])
    record = adata.uns["targets_params"]["dgidb_interactions"]
    assert (record["n_matched"], record["n_unmatched"], record["table"]) == (1, 5, "interactions.tsv")
    assert list(record["case_mismatch"]) == ["Esr1"]
    assert list(record["outdated"]) == ["OLDNAME -> NEWNAME"]
    assert set(record["unmatched"]) == set(GENES) - {"ERBB2"}
    assert list(table.index) == GENES[::-1]
    assert table["scores"].tolist() == [5, 4, 3, 2, 1, 0]


def test_no_gene_found_names_the_argument_that_helps(adata, interactions):
    adata.var = pd.DataFrame({"symbol": GENES}, index=IDS)
    adata.uns["biomarkers"]["names"] = IDS[::-1]
    assert not _joined(adata, interactions, "name it with `symbol_key=`")["in_dgidb_interactions"].any()
    assert (
        _joined(adata, interactions, r"`uns\['targets_params'\]`\.$", symbol_key="symbol").loc[IDS[0], "n_drugs"] == 3
    )


def test_dgidb_interactions_of_version_4_are_read(adata, tmp_path):
    path = tmp_path / "interactions.tsv.gz"
    pd.DataFrame({
        "gene_name": ["EGFR", "EGFR"], "gene_claim_name": ["EGFR", "1956"], "entrez_id": [1956, 1956],
        "interaction_claim_source": ["a", "b"], "interaction_types": ["inhibitor,antibody", ""],
        "drug_claim_name": ["e", "GEFITINIB"], "drug_name": ["ERLOTINIB", ""], "interaction_group_score": [3.0, 1.0],
    }).to_csv(path, sep="\t", index=False)  # fmt: skip
    row = _joined(adata, path).loc["EGFR"]
    assert row["drugs"] == "ERLOTINIB; GEFITINIB"
    assert row["interaction_types"] == "inhibitor; antibody"
    assert "n_approved_drugs" not in adata.uns["biomarkers"]  # not in this version


@pytest.mark.parametrize("names", [("entrez_gene_symbol", "category"), ("name", "name-2")])
def test_dgidb_categories_are_joined_once_per_gene(adata, tmp_path, names):
    path = tmp_path / "categories.tsv"
    rows = [("ERBB2", "KINASE"), ("ERBB2", "CELL SURFACE"), ("ERBB2", "KINASE"), ("EGFR", "KINASE")]
    pd.DataFrame(rows, columns=list(names)).to_csv(path, sep="\t", index=False)
    categories = _joined(adata, path, "4 are not in it")["gene_categories"]
    assert categories[["ERBB2", "EGFR", "TWICE"]].tolist() == ["KINASE; CELL SURFACE", "KINASE", ""]


def test_open_targets_prioritisation_is_matched_by_ensembl_id(adata, tmp_path):
    path = tmp_path / "prioritisation.csv"
    pd.DataFrame({
        "targetId": ["ENSG00000141736", "ENSG00000146648"], "maxClinicalTrialPhase": [1.0, 0.25],
        "isInMembrane": [1, 1], "isSecreted": [0, np.nan], "hasSafetyEvent": [-1, np.nan],
    }).to_csv(path, index=False)  # fmt: skip
    with pytest.raises(ValueError, match="Ensembl id only"):
        st.tl.targets(adata, path)
    assert list(adata.uns) == ["biomarkers"]
    adata.var["gene_ids"] = IDS
    table = _joined(adata, path, "4 are not in it")
    assert table.loc["ERBB2", ["maxClinicalTrialPhase", "isInMembrane", "hasSafetyEvent"]].tolist() == [1, 1, -1]
    assert np.isnan(table.loc["EGFR", "isSecreted"])
    assert adata.uns["targets_params"]["opentargets_prioritisation"]["matched_by"] == "ensembl"


def _assessment(modality: str, name: str, value: bool = True) -> dict[str, object]:
    return {"modality": modality, "id": name, "value": value}


def test_open_targets_tractability_is_listed_by_modality(adata):
    raw = pd.DataFrame({
        "id": ["ENSG00000141736", "ENSG00000146648", "ENSG1", "ENSG2"],
        "approvedSymbol": ["ERBB2", "EGFR", "TWICE", "TWICE"],
        "tractability": [
            [_assessment("SM", "Approved Drug"), _assessment("SM", "High-Quality Pocket"),
             _assessment("AB", "Approved Drug", value=False)],
            None, [_assessment("AB", "UniProt loc high conf")], [_assessment("AB", "Human Protein Atlas loc")],
        ],
    })  # fmt: skip
    table = _joined(adata, raw, r"1 have a symbol of several ids or variables \('TWICE'\)")
    assert table.loc["ERBB2", "tractability_sm"] == "Approved Drug; High-Quality Pocket"
    assert table.loc["ERBB2", "tractability_ab"] == ""
    assert table.loc["TWICE", "tractability_ab"] == "UniProt loc high conf; Human Protein Atlas loc"
    assert table.loc["EGFR", "in_opentargets_tractability"]


def test_parquet_files_are_read(adata, tmp_path):
    pytest.importorskip("pyarrow")
    path, tractability = tmp_path / "target.parquet", [[_assessment("SM", "Approved Drug")]]
    pd.DataFrame({"id": ["E1"], "approvedSymbol": ["ERBB2"], "tractability": tractability}).to_parquet(path)
    assert _joined(adata, path).loc["ERBB2", "tractability_sm"] == "Approved Drug"


def test_version_lines_above_the_header_are_skipped(adata, tmp_path):
    path = tmp_path / "categories.tsv"
    path.write_text(
        "# DGIdb version: 5.0.8\n# Data version: 2024-Dec\ngene_claim_name\tgene_category_name\tsource_db_name\n"
        "ERBB2\tKINASE\tHopkinsGroom\nERBB2\tCLINICALLY ACTIONABLE\tCarisMI\nEGFR\tKINASE\tHopkinsGroom\n"
    )
    table = _joined(adata, path, "4 are not in it")
    assert table.loc["ERBB2", "gene_categories"] == "KINASE; CLINICALLY ACTIONABLE"
    record = adata.uns["targets_params"]["dgidb_categories"]
    assert record["release"] == "DGIdb version: 5.0.8; Data version: 2024-Dec"
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    zipped = tmp_path / "interactions.tsv.gz"
    with gzip.open(zipped, "wt", encoding="utf-8") as lines:
        lines.write("# DGIdb version: 5.0.8\n" + INTERACTIONS)
    assert _joined(adata, zipped, "5 are not in it").loc["ERBB2", "n_drugs"] == 3


def _open_targets(folder):
    """The tables of Open Targets 26 that name genes, as folders of parquet parts with nested columns."""
    breast = [{"diseaseFromSource": "Breast cancer", "diseaseId": "EFO_0000305"}]
    colon = [{"diseaseFromSource": "Colon cancer", "diseaseId": "EFO_0000365"}]
    tables = {
        "target": pd.DataFrame({
            "id": ["ENSG00000141736", "ENSG00000146648"], "approvedSymbol": ["ERBB2", "EGFR"],
            "biotype": "protein_coding",
            "tractability": [[{"modality": "AB", "id": "Approved Drug", "value": True}], None],
            "safetyLiabilities": [[{"event": "cardiotoxicity", "eventId": "EFO_1"}, {"event": None}], []],
            "subcellularLocations": [[{"location": "Cell membrane", "source": "uniprot"}], None],
        }),
        "clinical_target": pd.DataFrame({
            "targetId": ["ENSG00000141736"] * 3 + ["ENSG00000146648"], "drugId": ["CH1", "CH2", "CH1", "CH3"],
            "diseases": [colon, breast, breast, colon],
            "maxClinicalStage": ["PHASE_1", "PHASE_3", "APPROVAL", "PHASE_2"],
        }),
        "drug_mechanism_of_action": pd.DataFrame({
            "actionType": ["INHIBITOR", "BINDING AGENT"], "mechanismOfAction": ["Receptor inhibitor", "ERBB2 binder"],
            "targets": [["ENSG00000141736", "ENSG00000146648"], ["ENSG00000141736"]], "chemblIds": [["CH1"], ["CH2"]],
        }),
        "target_essentiality": pd.DataFrame({
            "id": ["ENSG00000141736", "ENSG00000146648"],
            "geneEssentiality": [[{"isEssential": False}], [{"isEssential": True, "depMapEssentiality": []}]],
        }),
        "target_prioritisation": pd.DataFrame({
            "targetId": ["ENSG00000141736", "ENSG00000146648"], "maxClinicalStage": [1.0, 0.75], "isInMembrane": [1, 1],
            "hasSafetyEvent": [-1.0, None],
        }),
    }  # fmt: skip
    for name, table in tables.items():
        (folder / name).mkdir()
        table.iloc[:1].to_parquet(folder / name / "part-0.parquet")
        table.iloc[1:].to_parquet(folder / name / "part-1.parquet")
    return tables


@pytest.mark.filterwarnings("ignore:Of 6 genes")
def test_tables_of_open_targets_26_are_read(adata, tmp_path):
    tables = _open_targets(tmp_path)
    for name in tables:
        st.tl.targets(adata, tmp_path / name, symbols=tmp_path / "target")
    row, other = (adata.uns["biomarkers"].set_index("names").loc[gene] for gene in ("ERBB2", "EGFR"))
    assert (row["safety_events"], row["subcellular_locations"]) == ("cardiotoxicity", "Cell membrane")
    assert row["tractability_ab"] == "Approved Drug"
    assert (row["n_clinical_drugs"], row["clinical_drugs"], row["clinical_stage"]) == (2, "CH1; CH2", "APPROVAL")
    assert row["mechanisms"] == "Receptor inhibitor; ERBB2 binder"
    assert other["action_types"] == "INHIBITOR"
    assert (bool(row["is_essential"]), bool(other["is_essential"])) == (False, True)
    unlisted = adata.uns["biomarkers"].set_index("names").loc["NOTHING"]
    assert (unlisted["in_opentargets_essentiality"], unlisted["is_essential"] is pd.NA) == (False, True)
    digests = [adata.uns["targets_params"][f"opentargets_{name}"]["sha256"] for name in ("clinical", "essentiality")]
    assert digests[0] != digests[1]
    assert (row["maxClinicalStage"], other["maxClinicalStage"]) == (1.0, 0.75)
    assert adata.uns["targets_params"]["opentargets_clinical"]["matched_by"] == "symbol to ensembl"
    adata.uns["biomarkers"]["logfoldchanges"] = 1.0
    axis = st.pl.targets(adata, show=False)
    shown = {text.get_text() for text in axis.get_xticklabels()}
    cells = dict.fromkeys(text.get_text() for text in axis.texts)
    assert "\N{MINUS SIGN}" in cells  # safety events
    assert shown >= {"clinical drugs", "clinical stage", "antibody", "membrane protein", "safety events", "essential"}

    how = {"symbols": tables["target"], "disease": "colon cancer", "key_added": "colon"}
    st.tl.targets(adata, tmp_path / "clinical_target", **how)
    colon = adata.uns["colon"].set_index("names")
    assert colon.loc["ERBB2", "clinical_stage"] == "PHASE_1"
    assert colon.loc["EGFR", "clinical_drugs"] == "CH3"
    with pytest.raises(ValueError, match="No clinical target has `disease='flu'`"):
        st.tl.targets(adata, tables["clinical_target"], symbols=tables["target"], disease="flu")
    with pytest.raises(ValueError, match="`disease=` is for"):
        st.tl.targets(adata, tables["target"], disease="flu")
    with pytest.raises(ValueError, match="pass Open Targets' table of targets"):
        st.tl.targets(adata, tables["clinical_target"])
    with pytest.raises(ValueError, match="approvedSymbol"):
        st.tl.targets(adata, tables["clinical_target"], symbols=tables["clinical_target"])


def test_tables_with_a_symbol_column_and_several_tables_are_joined(adata, interactions):
    own = pd.DataFrame({"sym": ["ERBB2", "ERBB2", "EGFR"], "p": [1, 3, 2], "note": list("aba"), "hit": [0, 1, 0]})
    _joined(adata, own.astype({"hit": bool}), symbol_col="sym")
    with pytest.warns(UserWarning, match="not in it"):
        out = st.tl.targets(adata, interactions, key_added="drugged", copy=True)
    assert "drugged" not in adata.uns
    row = out.uns["drugged"].set_index("names").loc["ERBB2"]
    assert (row["p"], row["note"], bool(row["hit"]), row["n_drugs"]) == (3, "a; b", True, 3)
    assert "n_drugs" not in out.uns["biomarkers"]
    assert set(out.uns["drugged_params"]) == {"dgidb_interactions"}
    assert set(out.uns["targets_params"]) == {"table"}
    assert out.uns["targets_params"]["table"]["table"] == "DataFrame"


def test_a_table_does_not_replace_the_columns_of_another(adata, interactions, tmp_path):
    _joined(adata, interactions)
    before = adata.copy()
    own = pd.DataFrame({"s": ["ERBB2"], "drugs": ["mine"]})
    with pytest.raises(ValueError, match=r"\['drugs'\] are already columns .* joined before"):
        st.tl.targets(adata, own, symbol_col="s")
    assert_same(adata, before)
    assert _joined(adata, interactions).loc["ERBB2", "n_drugs"] == 3  # the same table again
    assert list(adata.uns["biomarkers"].columns) == list(before.uns["biomarkers"].columns)


def test_each_table_of_ones_own_has_its_record_and_column(adata, tmp_path):
    score, class_ = pd.DataFrame({"s": ["ERBB2"], "score": [1.0]}), pd.DataFrame({"s": ["EGFR"], "class": ["kinase"]})
    surface = pd.DataFrame({"s": ["ERBB2", "EGFR"]})  # a list of genes, without further columns
    for own in (score, class_, surface, surface, class_, score.assign(score=2.0)):
        _joined(adata, own, symbol_col="s")
    table, record = adata.uns["biomarkers"].set_index("names"), adata.uns["targets_params"]
    listed = {c.removeprefix("in_"): set(table.index[table[c]]) for c in table if c.startswith("in_")}
    assert listed == {"table": {"ERBB2"}, "table_2": {"EGFR"}, "table_3": {"ERBB2", "EGFR"}}
    assert {name: list(params["columns"]) for name, params in record.items()} == {
        "table": ["score"], "table_2": ["class"], "table_3": [],
    }  # fmt: skip
    assert table.loc["ERBB2", "score"] == 2, "the same columns again are an update"
    with pytest.raises(ValueError, match=r"\['class'\] are already columns .* joined before"):
        st.tl.targets(adata, pd.DataFrame({"s": ["EGFR"], "score": [1.0], "class": ["x"], "n": [1]}), symbol_col="s")
    for back in read_back(adata, tmp_path):
        assert_same(dict(back.uns["targets_params"]), dict(record))


def test_after_new_biomarkers_a_list_of_genes_has_its_name_again(adata):
    first = adata.uns["biomarkers"].copy()
    for _ in range(2):  # a notebook that runs twice
        adata.uns["biomarkers"] = first.copy()
        _joined(adata, pd.DataFrame({"s": ["ERBB2", "EGFR"]}), symbol_col="s")
        assert "in_table" in adata.uns["biomarkers"]
        assert list(adata.uns["targets_params"]) == ["table"]


def test_variables_that_share_a_symbol_get_the_same_row(adata):
    adata.var["symbol"] = ["ERBB2", "ERBB2", "ESR1", "x", "y", "z"]
    own = pd.DataFrame({"s": ["ERBB2"], "v": [1.0]})
    table = _joined(adata, own, r"2 have a symbol of several.*ERBB2", symbol_col="s", symbol_key="symbol")
    assert table.loc[["ERBB2", "EGFR"], "v"].tolist() == [1, 1]
    assert table["v"].isna().sum() == 4


def test_joined_table_survives_files(adata, interactions, tmp_path):
    _joined(adata, interactions)
    for back in read_back(adata, tmp_path):
        pd.testing.assert_frame_equal(back.uns["biomarkers"], adata.uns["biomarkers"])
        record = back.uns["targets_params"]["dgidb_interactions"]
        assert list(record["outdated"]) == ["OLDNAME -> NEWNAME"]
        assert record["n_matched"] == 1


UNKNOWN = pd.DataFrame({"s": ["ERBB2"]})


@pytest.mark.parametrize(
    ("table", "how", "error", "match"),
    [
        (UNKNOWN, {}, ValueError, "symbol_col"),
        (UNKNOWN, {"symbol_col": "nope"}, KeyError, "nope"),
        (UNKNOWN, {"symbol_col": "s", "symbol_key": "nope"}, KeyError, "`symbol_key='nope'` is not in"),
        (UNKNOWN, {"symbol_col": "s", "ensembl_key": "nope"}, KeyError, "`ensembl_key='nope'` is not in"),
        (UNKNOWN, {"symbol_col": "s", "key": ["biomarkers"]}, TypeError, "`key` must be a string, a key"),
        (UNKNOWN, {"symbol_col": "s", "key": "other"}, KeyError, r"st\.tl\.biomarkers"),
        ("none.tsv", {}, FileNotFoundError, "no file"),
        ("a.xlsx", {}, ValueError, r"\.parquet"),
        (3, {}, TypeError, "path or a DataFrame"),
        (UNKNOWN.assign(scores=1.0), {"symbol_col": "s"}, ValueError, "already columns of the biomarker table"),
        (pd.DataFrame([["g0", 1, 2]], columns=["s", "v", "v"]), {"symbol_col": "s"}, ValueError, "more than once"),
        (UNKNOWN.assign(**{"": 1}), {"symbol_col": "s"}, ValueError, "cannot store"),
        (UNKNOWN.assign(**{"a/b": 1}), {"symbol_col": "s"}, ValueError, "cannot store"),
        (UNKNOWN.assign(v=1 + 2j), {"symbol_col": "s"}, TypeError, "complex"),
    ],
)
def test_wrong_tables_and_arguments_leave_the_data_unchanged(adata, tmp_path, monkeypatch, table, how, error, match):
    monkeypatch.chdir(tmp_path)
    Path("a.xlsx").write_text("")
    before = adata.uns["biomarkers"].copy()
    with pytest.raises(error, match=match):
        st.tl.targets(adata, table, **how)
    pd.testing.assert_frame_equal(adata.uns["biomarkers"], before)
    assert list(adata.uns) == ["biomarkers"]


def test_malformed_tractability_adds_empty_columns(adata):
    adata.var["gene_ids"] = IDS
    before = set(adata.uns["biomarkers"].columns)
    table = _joined(adata, pd.DataFrame({"targetId": ["ENSG00000141736"], "tractability": [[3, None]]}))
    added = table.loc[:, [c.startswith("tractability") for c in table.columns]]
    assert added.shape[1] > 0
    assert set(added.columns).isdisjoint(before)
    assert (added == "").all().all()
