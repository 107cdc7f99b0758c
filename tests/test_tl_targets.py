"""tl.targets on small files in the formats of DGIdb and Open Targets."""

from __future__ import annotations

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
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


def _joined(adata: ad.AnnData, key: str = "biomarkers") -> pd.DataFrame:
    return adata.uns[key].set_index("names")


def test_dgidb_interactions(adata, tmp_path):
    path = tmp_path / "interactions.tsv"
    path.write_text(INTERACTIONS)
    with pytest.warns(UserWarning, match=r"5 are not in it .*1 differ .* only by case.*1 have an outdated"):
        st.tl.targets(adata, path)
    table = _joined(adata)
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


def test_dgidb_interactions_of_version_4(adata, tmp_path):
    path = tmp_path / "interactions.tsv.gz"
    pd.DataFrame(
        {
            "gene_name": ["EGFR", "EGFR"],
            "gene_claim_name": ["EGFR", "1956"],
            "entrez_id": [1956, 1956],
            "interaction_claim_source": ["a", "b"],
            "interaction_types": ["inhibitor,antibody", ""],
            "drug_claim_name": ["e", "GEFITINIB"],
            "drug_name": ["ERLOTINIB", ""],
            "interaction_group_score": [3.0, 1.0],
        }
    ).to_csv(path, sep="\t", index=False)
    with pytest.warns(UserWarning, match="not in it"):
        st.tl.targets(adata, path)
    row = _joined(adata).loc["EGFR"]
    assert row["drugs"] == "ERLOTINIB; GEFITINIB"
    assert row["interaction_types"] == "inhibitor; antibody"
    assert "n_approved_drugs" not in adata.uns["biomarkers"]  # this version does not say


@pytest.mark.parametrize("names", [("entrez_gene_symbol", "category"), ("name", "name-2")])
def test_dgidb_categories(adata, tmp_path, names):
    path = tmp_path / "categories.tsv"
    rows = [("ERBB2", "KINASE"), ("ERBB2", "CELL SURFACE"), ("ERBB2", "KINASE"), ("EGFR", "KINASE")]
    pd.DataFrame(rows, columns=list(names)).to_csv(path, sep="\t", index=False)
    with pytest.warns(UserWarning, match="4 are not in it"):
        st.tl.targets(adata, path)
    table = _joined(adata)
    assert table.loc["ERBB2", "gene_categories"] == "KINASE; CELL SURFACE"
    assert table.loc["EGFR", "gene_categories"] == "KINASE"
    assert table.loc["TWICE", "gene_categories"] == ""


def test_open_targets_prioritisation_by_ensembl_id(adata, tmp_path):
    path = tmp_path / "prioritisation.csv"
    pd.DataFrame(
        {
            "targetId": ["ENSG00000141736", "ENSG00000146648"],
            "maxClinicalTrialPhase": [1.0, 0.25],
            "isInMembrane": [1, 1],
            "isSecreted": [0, np.nan],
            "hasSafetyEvent": [-1, np.nan],
        }
    ).to_csv(path, index=False)
    with pytest.raises(ValueError, match="Ensembl id only"):
        st.tl.targets(adata, path)
    assert list(adata.uns) == ["biomarkers"]
    adata.var["gene_ids"] = IDS
    with pytest.warns(UserWarning, match="4 are not in it"):
        st.tl.targets(adata, path)
    table = _joined(adata)
    assert table.loc["ERBB2", ["maxClinicalTrialPhase", "isInMembrane", "hasSafetyEvent"]].tolist() == [1, 1, -1]
    assert np.isnan(table.loc["EGFR", "isSecreted"])
    assert adata.uns["targets_params"]["opentargets_prioritisation"]["matched_by"] == "ensembl"


def test_open_targets_tractability(adata):
    raw = pd.DataFrame(
        {
            "id": ["ENSG00000141736", "ENSG00000146648", "ENSG1", "ENSG2"],
            "approvedSymbol": ["ERBB2", "EGFR", "TWICE", "TWICE"],
            "tractability": [
                [
                    {"modality": "SM", "id": "Approved Drug", "value": True},
                    {"modality": "SM", "id": "High-Quality Pocket", "value": True},
                    {"modality": "AB", "id": "Approved Drug", "value": False},
                ],
                None,
                [{"modality": "AB", "id": "UniProt loc high conf", "value": True}],
                [{"modality": "AB", "id": "Human Protein Atlas loc", "value": True}],
            ],
        }
    )
    with pytest.warns(UserWarning, match=r"1 have a symbol of several ids or variables \('TWICE'\)"):
        st.tl.targets(adata, raw)
    table = _joined(adata)
    assert table.loc["ERBB2", "tractability_sm"] == "Approved Drug; High-Quality Pocket"
    assert table.loc["ERBB2", "tractability_ab"] == ""
    assert table.loc["TWICE", "tractability_ab"] == "UniProt loc high conf; Human Protein Atlas loc"
    assert table.loc["EGFR", "in_opentargets_tractability"]


def test_parquet(adata, tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "target.parquet"
    tractability = [[{"modality": "SM", "id": "Approved Drug", "value": True}]]
    pd.DataFrame({"id": ["E1"], "approvedSymbol": ["ERBB2"], "tractability": tractability}).to_parquet(path)
    with pytest.warns(UserWarning, match="not in it"):
        st.tl.targets(adata, path)
    assert _joined(adata).loc["ERBB2", "tractability_sm"] == "Approved Drug"


def test_dgidb_5_states_its_version_above_the_header(adata, tmp_path):
    path = tmp_path / "categories.tsv"
    path.write_text(
        "# DGIdb version: 5.0.8\n# Data version: 2024-Dec\ngene_claim_name\tgene_category_name\tsource_db_name\n"
        "ERBB2\tKINASE\tHopkinsGroom\nERBB2\tCLINICALLY ACTIONABLE\tCarisMI\nEGFR\tKINASE\tHopkinsGroom\n"
    )
    with pytest.warns(UserWarning, match="4 are not in it"):
        st.tl.targets(adata, path)
    assert _joined(adata).loc["ERBB2", "gene_categories"] == "KINASE; CLINICALLY ACTIONABLE"
    zipped = tmp_path / "interactions.tsv.gz"
    with gzip.open(zipped, "wt", encoding="utf-8") as lines:
        lines.write("# DGIdb version: 5.0.8\n" + INTERACTIONS)
    with pytest.warns(UserWarning, match="5 are not in it"):
        st.tl.targets(adata, zipped)
    assert _joined(adata).loc["ERBB2", "n_drugs"] == 3


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
def test_open_targets_26(adata, tmp_path):
    tables = _open_targets(tmp_path)
    for name in tables:
        st.tl.targets(adata, tmp_path / name, symbols=tmp_path / "target")
    row, other = (_joined(adata).loc[gene] for gene in ("ERBB2", "EGFR"))
    assert (row["safety_events"], row["subcellular_locations"]) == ("cardiotoxicity", "Cell membrane")
    assert row["tractability_ab"] == "Approved Drug"
    assert (row["n_clinical_drugs"], row["clinical_drugs"], row["clinical_stage"]) == (2, "CH1; CH2", "APPROVAL")
    assert row["mechanisms"] == "Receptor inhibitor; ERBB2 binder"
    assert other["action_types"] == "INHIBITOR"
    assert (bool(row["is_essential"]), bool(other["is_essential"])) == (False, True)
    assert (row["maxClinicalStage"], other["maxClinicalStage"]) == (1.0, 0.75)
    assert adata.uns["targets_params"]["opentargets_clinical"]["matched_by"] == "symbol to ensembl"
    adata.uns["biomarkers"]["logfoldchanges"] = 1.0
    axis = st.pl.targets(adata, show=False)
    shown = {text.get_text() for text in axis.get_xticklabels()}
    assert shown >= {"clinical drugs", "clinical stage", "antibody", "membrane protein", "safety events", "essential"}

    st.tl.targets(
        adata, tmp_path / "clinical_target", symbols=tables["target"], disease="colon cancer", key_added="colon"
    )
    colon = _joined(adata, "colon")
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


def test_any_table_with_a_symbol_column_and_several_tables(adata, tmp_path):
    own = pd.DataFrame(
        {"sym": ["ERBB2", "ERBB2", "EGFR"], "p": [1, 3, 2], "note": ["a", "b", "a"], "hit": [False, True, False]}
    )
    with pytest.warns(UserWarning, match="not in it"):
        st.tl.targets(adata, own, symbol_col="sym")
    path = tmp_path / "interactions.tsv"
    path.write_text(INTERACTIONS)
    with pytest.warns(UserWarning, match="not in it"):
        out = st.tl.targets(adata, path, key_added="drugged", copy=True)
    assert "drugged" not in adata.uns
    row = _joined(out, "drugged").loc["ERBB2"]
    assert (row["p"], row["note"], bool(row["hit"]), row["n_drugs"]) == (3, "a; b", True, 3)
    assert "n_drugs" not in out.uns["biomarkers"]
    assert set(out.uns["drugged_params"]) == {"dgidb_interactions"}
    assert set(out.uns["targets_params"]) == {"table"}
    assert out.uns["targets_params"]["table"]["table"] == "DataFrame"


def test_symbols_from_a_column_and_variables_that_share_one(adata):
    adata.var["symbol"] = ["ERBB2", "ERBB2", "ESR1", "x", "y", "z"]
    with pytest.warns(UserWarning, match=r"2 have a symbol of several.*ERBB2"):
        st.tl.targets(adata, pd.DataFrame({"s": ["ERBB2"], "v": [1.0]}), symbol_col="s", symbol_key="symbol")
    table = _joined(adata)
    assert table.loc[["ERBB2", "EGFR"], "v"].tolist() == [1, 1]
    assert table["v"].isna().sum() == 4


@pytest.mark.parametrize("fmt", ["h5ad", "zarr"])
def test_round_trip(adata, fmt, tmp_path):
    path = tmp_path / "interactions.tsv"
    path.write_text(INTERACTIONS)
    with pytest.warns(UserWarning, match="not in it"):
        st.tl.targets(adata, path)
    getattr(adata, f"write_{fmt}")(tmp_path / f"a.{fmt}")
    back = getattr(ad, f"read_{fmt}")(tmp_path / f"a.{fmt}")
    pd.testing.assert_frame_equal(back.uns["biomarkers"], adata.uns["biomarkers"])
    record = back.uns["targets_params"]["dgidb_interactions"]
    assert list(record["outdated"]) == ["OLDNAME -> NEWNAME"]
    assert record["n_matched"] == 1


def test_bad_input_leaves_everything_as_it_was(adata, tmp_path):
    before = adata.uns["biomarkers"].copy()
    unknown = pd.DataFrame({"a": [1]})
    with pytest.raises(ValueError, match="symbol_col"):
        st.tl.targets(adata, unknown)
    with pytest.raises(KeyError, match="nope"):
        st.tl.targets(adata, unknown, symbol_col="nope")
    with pytest.raises(FileNotFoundError, match="no file"):
        st.tl.targets(adata, tmp_path / "none.tsv")
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"\.parquet"):
        st.tl.targets(adata, tmp_path / "a.xlsx")
    with pytest.raises(TypeError, match="path or a DataFrame"):
        st.tl.targets(adata, 3)
    with pytest.raises(ValueError, match="biomarker table's own"):
        st.tl.targets(adata, pd.DataFrame({"s": ["ERBB2"], "scores": [1.0]}), symbol_col="s")
    for name in ("symbol_key", "ensembl_key"):
        with pytest.raises(KeyError, match=f"`{name}='nope'` is not in"):
            st.tl.targets(adata, unknown, symbol_col="a", **{name: "nope"})
    with pytest.raises(TypeError, match="`key` must be a key"):
        st.tl.targets(adata, unknown, key=["biomarkers"])
    pd.testing.assert_frame_equal(adata.uns["biomarkers"], before)
    assert list(adata.uns) == ["biomarkers"]
    del adata.uns["biomarkers"]
    with pytest.raises(KeyError, match=r"st\.tl\.biomarkers"):
        st.tl.targets(adata, unknown, symbol_col="a")


@pytest.mark.parametrize(
    ("table", "error", "match"),
    [
        (pd.DataFrame([["g0", 1, 2]], columns=["s", "v", "v"]), ValueError, "more than once"),
        (pd.DataFrame({"s": ["g0"], "": [1]}), ValueError, "cannot store"),
        (pd.DataFrame({"s": ["g0"], "a/b": [1]}), ValueError, "cannot store"),
        (pd.DataFrame({"s": ["g0"], "v": [1 + 2j]}), TypeError, "complex"),
    ],
)
def test_odd_tables_are_refused_by_name(adata, table, error, match):
    with pytest.raises(error, match=match):
        st.tl.targets(adata, table, symbol_col="s")


def test_assessments_that_are_none_hold_nothing(adata):
    adata.var["gene_ids"] = IDS
    before = set(adata.uns["biomarkers"].columns)
    with pytest.warns(UserWarning, match="not in it"):
        st.tl.targets(adata, pd.DataFrame({"targetId": ["ENSG00000141736"], "tractability": [[3, None]]}))
    added = adata.uns["biomarkers"].loc[:, lambda t: [c.startswith("tractability") for c in t.columns]]
    assert set(added.columns).isdisjoint(before)
    assert (added == "").all().all()
