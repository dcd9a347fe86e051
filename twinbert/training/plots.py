"""Pictures of an evaluation: what one number for each system hides. PNG, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from twinbert.training.metrics import RELEVANT, Floats, Judgments, reliability

_DPI = 120
_COLUMNS = 3
_DISTRIBUTION_BINS = 25


def plot_roc(path: Path, scores: Mapping[str, Floats], judgments: Judgments, aucs: Mapping[str, float]) -> None:
    """ROC curves, relevant from grade 0.5; `aucs` go into the legend."""
    figure = Figure(figsize=(6.5, 6), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot(aspect="equal", xlim=(0, 1), ylim=(0, 1))
    _colour(axes)
    relevant_N = judgments.relevant(RELEVANT["auc2"])
    for name, scores_N in scores.items():
        false_positives, true_positives, _ = roc_curve(relevant_N, scores_N)
        axes.plot(false_positives, true_positives, label=f"{name}  {aucs[name]:.3f}", linewidth=1.4)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC, relevant from grade 0.5")
    axes.legend(title="area under the curve", loc="lower right", fontsize="small")
    figure.savefig(path)


def plot_calibration(path: Path, probabilities: Mapping[str, Floats], judgments: Judgments) -> None:
    """Reliability diagram: the mean grade where a probability is given, and how often it is given."""
    figure = Figure(figsize=(6.5, 7.5), dpi=_DPI, layout="constrained")
    axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    _colour(axes)
    _colour(below)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    highest = 0.0
    for name, probabilities_N in probabilities.items():
        probability_K, grade_K, share_K = reliability(probabilities_N, judgments.grade_N)
        used_K = share_K > 0
        axes.plot(probability_K[used_K], grade_K[used_K], marker="o", markersize=3.5, linewidth=1.2, label=name)
        below.plot(probability_K[used_K], share_K[used_K], marker="o", markersize=3, linewidth=1)
        highest = max(highest, share_K.max())
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="mean grade", title="Calibration")
    axes.legend(fontsize="small", loc="upper left")
    below.set(xlabel="mean probability in the bin", ylabel="share of pairs", ylim=(0, 1.1 * highest))
    figure.savefig(path)


def plot_distributions(path: Path, scores: Mapping[str, Floats], judgments: Judgments) -> None:
    """Scores of the pairs that are relevant (from grade 0.5) and of the others, each system on its own scale."""
    rows = -(-len(scores) // _COLUMNS)
    figure = Figure(figsize=(3.4 * _COLUMNS, 2.5 * rows + 0.5), dpi=_DPI, layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    relevant_N = judgments.relevant(RELEVANT["auc2"])
    for axes, (name, scores_N) in zip(panels, scores.items(), strict=False):
        edges = np.linspace(scores_N.min(), scores_N.max(), _DISTRIBUTION_BINS + 1)
        for label, chosen_N in (("relevant", relevant_N), ("other", ~relevant_N)):
            axes.hist(scores_N[chosen_N], edges, density=True, histtype="stepfilled", alpha=0.5, label=label)
        axes.set_title(name, fontsize="medium")
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=4)
    for axes in list(figure.axes)[len(scores) :]:
        axes.remove()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize="small")
    figure.supxlabel("score")
    figure.supylabel("density")
    figure.savefig(path)


def _colour(axes: Axes) -> None:
    """Twenty colours: a table of systems has more rows than the default's ten."""
    axes.set_prop_cycle(color=[colormaps["tab20"](place) for place in (*range(0, 20, 2), *range(1, 20, 2))])
