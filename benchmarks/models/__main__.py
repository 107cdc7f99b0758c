"""Make the models that come with the package.

    make models DATA=folder/of/sections

"human_cortex" is trained on the layers of two sections of one donor (dlpfc 151673 and 151675). Its card gives the
accuracy and ARI of a model of one of them on the other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import anndata as ad
import pandas as pd
from sklearn.metrics import adjusted_rand_score

import stxtools as st

SAMPLES = ("151673", "151675")
FOLDER = Path(st.__file__).parent / "models" / "shipped"


def scores(source: ad.AnnData, target: ad.AnnData) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.stx"
        st.tl.segment(source.copy(), labels_key="layer", save_model=path, show_progress=False)
        found = target.copy()
        st.tl.segment(found, model=path, show_progress=False)
    known = found.obs["layer"].notna()
    truth, segment = (found.obs.loc[known, key].astype(str) for key in ("layer", "segment"))
    return {
        "accuracy": round(float((truth == segment).mean()), 3),
        "ari": round(float(adjusted_rand_score(truth, segment)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=st.settings.datasetdir, help="folder of the sections (*.h5ad)")
    st.settings.datasetdir = parser.parse_args().data
    sections = {sample: st.datasets.dlpfc(sample) for sample in SAMPLES}
    judged = {f"{one} to {two}": scores(sections[one], sections[two]) for one, two in (SAMPLES, SAMPLES[::-1])}
    both = ad.concat(sections, label="section", join="inner", index_unique="-")
    both.obs["layer"] = both.obs["layer"].astype(pd.CategoricalDtype(sections[SAMPLES[0]].obs["layer"].cat.categories))
    FOLDER.mkdir(exist_ok=True)
    st.tl.segment(
        both, labels_key="layer", library_key="section", save_model=FOLDER / "human_cortex.stx", show_progress=False
    )
    card = {
        "tissue": "human dorsolateral prefrontal cortex, adult, healthy",
        "platform": "10x Visium",
        "classes": st.models.load(FOLDER / "human_cortex.stx").classes,
        "n_genes": both.n_vars,
        "sections": [f"dlpfc {sample}" for sample in SAMPLES],
        "scores": judged,
        "limits": "One donor; highly variable genes only. Sections without white matter or of other regions of the "
        "cortex have not been tried.",
        "source": "Maynard et al. 2021, Nature Neuroscience, doi:10.1038/s41593-020-00787-0",
    }
    (FOLDER / "human_cortex.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
