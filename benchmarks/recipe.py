"""What each step of the recipe is worth, one at a time, on a model small enough to try them all on a CPU.

    python benchmarks/recipe.py --folder IMDB [--only NAME ...] [--seeds 0 1] [--output DIR]

Each line of the table changes the one named "joint" by what its name says, and trains for as many steps
unless its name says otherwise: 21,000 reviews of IMDB, two in seven of them labelled, of 128 tokens at most,
two epochs of 329 steps; an LSTM each way and a minimal GRU as decoder, of 64 units. The model is small and
its training short, so the lines compare with each other and not with a preset. They are of the 5,000
validation reviews; the test reviews are not looked at. Accuracy, loss, reconstruction and KL are those that
training reports, z drawn. The others are of `python -m textvae.evaluate`: the probe is a logistic regression
on the means of 10,000 labelled training reviews, whatever the head was told; MI is I_q(x, z) over 10,000
training reviews; delta is what shuffling z between reviews costs the reconstruction. KL and active units
alone do not tell a constant from information. The standard error of an accuracy p is sqrt(p (1 - p) / 5,000):
0.6 points at 75 %.

FOLDER holds train.parquet, unsupervised.parquet and test.parquet. A training that was finished in DIR is not
done again, one that was interrupted goes on. A line takes 3 to 6 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PRESET = Path(__file__).resolve().parent.parent / "configs" / "imdb-cpu.yaml"
SMALL = (
    "data.train_size=21000",
    "vocabulary.size=4000",
    "vocabulary.max_length=128",
    "model.embedding=64",
    "model.encoder=lstm",
    "model.encoder_hidden=64",
    "model.naive_bayes_order=0",
    "model.decoder_hidden=64",
    "model.decoder_layers=1",
    "objective.scored_share=0.1",
    "training.epochs=2",
)
PRETRAINED = (
    "objective.pretraining=language_model",
    "objective.pretraining_epochs=1",
    "objective.encoder_lm_weight=1",
)
DENOISING = (
    "objective.pretraining=autoencoder",
    "objective.pretraining_epochs=1",
    "objective.pretraining_token_drop=0.3",
)
BARE = ("model.mean_scale=null", "model.variance=learned", "objective.decorrelation_weight=0")
STEPS: dict[str, tuple[str, ...]] = {
    "joint": (),
    # 1. In stages (Dai & Le 2015). Half of the steps are pretraining, so that the lines cost the same;
    # three stages take half as many steps again.
    "pretrained: language models": PRETRAINED,
    "pretrained: denoising autoencoder": DENOISING,
    "language models, the bound, all: an epoch each": (
        *PRETRAINED,
        "objective.sentiment_after_epochs=1",
        "training.epochs=3",
    ),
    # 2. Against posterior collapse. The line "joint" has a batch norm of the means and a fixed variance.
    "no norm, no warm-up": (*BARE, "objective.kl_warmup_epochs=0"),
    "no norm": BARE,
    "no norm, warm-up in cycles of half an epoch": (
        *BARE,
        "objective.kl_cycle_epochs=0.5",
        "objective.kl_warmup_epochs=0.25",
    ),
    "no norm, 0.25 nats free": (*BARE, "objective.free_bits=0.25"),
    "no norm, autoencoder before": (*BARE, *DENOISING[:2]),
    "no norm, autoencoder before, decoder anew": (*BARE, *DENOISING[:2], "objective.reset_decoder=true"),
    # 3. Semi-supervision.
    "without labels": ("objective.sentiment_weight=0",),
    "labelled reviews alone": ("data.unlabelled=false", "data.train_size=6000", "training.epochs=7"),
    "entropy of unlabelled reviews": ("objective.entropy_weight=10",),
    "virtual adversarial training": ("objective.adversarial_weight=43", "objective.adversarial_norm=5"),
    # 4. Regularization.
    "weight drop 0.2": ("model.weight_drop=0.2",),
    "dropout 0.3, one mask a review": ("model.dropout=0.3", "model.dropout_mask=review"),
    "embedding dropout 0.05": ("model.embedding_dropout=0.05",),
    "a softmax of its own": ("model.tied=false",),
    "bag of words": ("objective.words_weight=1",),
    "average of the weights": ("training.averaging=0.99",),
    "the first 128 tokens": ("vocabulary.truncation=post",),
    "all states pooled": ("model.pooling=all",),
    "pretrained, smaller steps below": (*PRETRAINED, "training.layer_decay=0.385"),
    # 5. Encoders and decoders.
    "encoder: minimal GRU": ("model.encoder=mingru",),
    "encoder: n-grams": ("model.encoder=ngrams", "model.ngram_order=2"),
    "encoder: NB-SVM beside the LSTM": ("model.naive_bayes_order=2",),
    "decoder: LSTM": ("model.decoder=autoregressive",),
    "decoder: Transformer": ("model.decoder=transformer",),
    # What the lines above made doubtful: the last state alone of a language model, and so large a weight.
    "pretrained, all states pooled": (*PRETRAINED, "model.pooling=all"),
    "virtual adversarial training, weakly": (
        "objective.adversarial_weight=4",
        "objective.adversarial_norm=1",
    ),
    # What Li et al. (EMNLP 2019) propose is all three together.
    "no norm, autoencoder before, decoder anew, 0.25 nats free": (
        *BARE,
        *DENOISING[:2],
        "objective.reset_decoder=true",
        "objective.free_bits=0.25",
    ),
}
HEAD = """\
| step | seed | accuracy | probe | sentiment loss | reconstruction | KL | -ELBO | MI | active | delta | time |
|---|---|---|---|---|---|---|---|---|---|---|---|"""
COLUMNS = ("sentiment_accuracy", "sentiment_loss", "reconstruction", "kl", "active_units")
# The mutual information is of 10,000 training reviews whatever --reviews says.
PARTS = {"sentiment": (), "latent": ("--reviews", "1000")}


def main() -> None:
    """Train and measure what was not, and print the table."""
    options = _options()
    print(HEAD, flush=True)
    for seed in options.seeds:
        for name in options.only or STEPS:
            folder = options.output / f"{list(STEPS).index(name):02}-{seed}"
            if not (folder / "finished").exists():
                _train(name, seed, folder, options)
            for part in PARTS:
                if not (folder / f"{part}.json").exists():
                    _evaluate(part, folder, options)
            print(_line(name, seed, folder), flush=True)


def _train(name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    changes = (f"data.folder={options.folder}", f"seed={seed}", *SMALL, *STEPS[name])
    _run(
        *("textvae", str(PRESET), "--output", str(folder), "--data", str(_prepared(options))),
        *(["--resume"] if folder.exists() else []),
        *(f"--set={change}" for change in changes),
    )
    (folder / "finished").touch()


def _evaluate(part: str, folder: Path, options: argparse.Namespace) -> None:
    epoch = _reports(folder)[-1]["epoch"]
    _run(
        *("textvae.evaluate", str(folder / f"epoch-{epoch:02}"), "--data-folder", str(_prepared(options))),
        *("--parts", part, *PARTS[part], "--output", str(folder / f"{part}.json")),
    )


def _run(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments, "--threads", "1"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _prepared(options: argparse.Namespace) -> Path:
    return options.data or options.output / "data"


def _reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "reports.jsonl").read_text(encoding="utf-8").splitlines()]


def _line(name: str, seed: int, folder: Path) -> str:
    reports = _reports(folder)
    accuracy, loss, reconstruction, kl, active = (reports[-1]["validation"][column] for column in COLUMNS)
    seconds = sum(report["seconds"] for report in reports)
    sentiment, latent = (
        json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))["metrics"][part] for part in PARTS
    )
    # A head that no label was told to says nothing; the probe is what such a latent is held to.
    told = sentiment["head_trained"]
    return (
        f"| {name} | {seed} | {f'{accuracy:.1%}' if told else '-'} | {sentiment['probe']['accuracy']:.1%} "
        f"| {f'{loss:.3f}' if told else '-'} "
        f"| {reconstruction:,.1f} | {kl:.1f} | {reconstruction + kl:,.1f} "
        f"| {latent['training']['mutual_information']:.1f} | {active:.0f} "
        f"| {latent['delta_reconstruction']:.1f} | {seconds:.0f} s |"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where IMDB's Parquet files are")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="NAME", help="these steps alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="with each (0)")
    parser.add_argument("--output", type=Path, default=Path("recipe"), help="of the trainings (recipe)")
    parser.add_argument("--data", type=Path, help="where prepared reviews are kept (beside the trainings)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
