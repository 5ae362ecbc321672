"""The answer claims no more than the tables: no crown that seeds do not settle, and what speaks against a number."""

import re

import pandas as pd
import pytest

from mtlib.report import answer, cards, causes, findings, measures, model_judge, sections
from mtlib.report.labels import errors_first
from tests.report.test_report import fair_run


class Tables:
    """A reader of given tables, facts and parameters."""

    def __init__(self, name="demo", facts=None, params=None, methods=(), figures=(), **tables):
        self.name, self._facts, self._params, self.tables = name, facts or {}, params or {}, tables
        self._methods, self._figures = list(methods), list(figures)

    folders = {}

    def table(self, name):
        return self.tables.get(f"t{name}", pd.DataFrame()).copy()

    def facts(self, stage):
        return self._facts.get(stage, {})

    def params(self, stage):
        return self._params.get(stage, {})

    def methods(self):
        return self._methods

    def figures(self, number):
        return [f for f in self._figures if f.startswith(number)]

    def find(self, stage, path):
        return None


PLAUSIBLE = {"01_embed": {"labels": "plausibility"}}


def cause_table(**seeds):
    """04_causes with two causes: method=(mean AUROC of seed 0, of seed 1, ...)."""
    return pd.DataFrame(
        [
            dict(cause=c, captioned=True, method=m, seed=s, auroc=a + d, ceiling=1.0, ceiling_x=1.0, ceiling_y=1.0,
                 best_x_dim=0.95, best_y_dim=0.94)
            for m, aurocs in seeds.items() for s, a in enumerate(aurocs) for c, d in (("fingers", 0.01), ("water", -0.01))
        ]
    )  # fmt: skip


def test_a_method_is_ahead_only_where_its_weakest_seed_is_above_every_other_seed():
    mixed = cause_table(a=(0.97, 0.95), b=(0.96, 0.961))
    text = causes.reading(mixed)
    assert "cannot be told" in text and "ahead" not in text and "best method" not in text
    assert "overlap with those of a" in text, "b has the higher mean, a the best first seed"
    settled = causes.reading(cause_table(a=(0.97, 0.98), b=(0.95, 0.96)))
    assert "a is ahead: its weakest seed has 0.9700, the strongest of any other method 0.9600" in settled
    assert "With one seed it cannot be told" in causes.reading(cause_table(a=(0.97,), b=(0.90,)))


def test_causes_are_means_over_seeds_with_their_range():
    text = causes.reading(cause_table(a=(0.97, 0.95)))
    assert "Single features of a find 1.50 of 2 known causes" in text and "0.960 [0.950, 0.970]" in text
    assert "Hardest is water, on average 0.950 against a ceiling of 1.00" in text
    by = causes.by_method(cause_table(a=(0.97, 0.95), b=(0.9, 0.9))).set_index("method")
    assert by.loc["a", ["reached", "mean", "low", "high"]].tolist() == pytest.approx([1.5, 0.96, 0.95, 0.97])


@pytest.mark.parametrize(
    ("auroc", "verdict"), [(0.90, "worse than"), (0.952, "no better than"), (0.97, "0.0200 better in mean AUROC than")]
)
def test_features_are_better_worse_or_no_better_than_single_dimensions(auroc, verdict):
    assert f"the features are {verdict} single dimensions" in causes.reading(cause_table(a=(auroc,)))


def test_notebook_and_report_say_the_same_of_causes():
    table = cause_table(a=(0.97, 0.95), b=(0.96, 0.961))
    assert causes.reading(table) in answer.answer(Tables(t04_causes=table, facts=PLAUSIBLE))


def relevance(l0=(32, 32), n=22.0, moved=0.04):
    """Two methods, `shared` with the larger share, and what speaks against it."""
    wide = pd.DataFrame({"method": ["sae", "shared"], "n_latents": 512, "enriched": [0.1, 0.4], "threshold": 0.1})
    for score in ("enriched", "threshold"):
        wide[f"{score}_low"], wide[f"{score}_high"] = wide[score] - 0.02, wide[score] + 0.02
    methods = ["sae", "shared"]
    return dict(
        t07_relevance=wide.assign(reason=""),
        t04_metrics=pd.DataFrame({"method": methods, "l0": l0, "seed": 0}),
        t04_splitting=pd.DataFrame({"method": methods, "n_features": [9.0, n], "seed": 0, "cause": "fingers"}),
        t05_features=pd.DataFrame(
            {"method": methods, "median_causal": [0.2, moved], "median_causal_control": 0.05, "beyond_control": 0.4}
        ),
    )


def test_the_largest_share_stands_beside_what_speaks_against_it():
    text = answer.answer(Tables(facts=PLAUSIBLE, **relevance()))
    assert "but its error features repeat each other (22.0 per cause; sae 9.0)" in text
    assert "moves the logit less than another latent's direction does (median 0.0400 against 0.0500" in text
    plain = answer.answer(Tables(facts=PLAUSIBLE, **relevance(n=1.0, moved=0.06)))
    assert "repeat" not in plain and "but" not in plain and "moves the logit more than" in plain


def test_shares_at_different_l0_are_no_ranking_and_one_method_is_no_comparison():
    text = answer.answer(Tables(facts=PLAUSIBLE, **relevance(l0=(8, 128))))
    assert "run at L0 8 to 128, so this is no ranking" in text.replace(".00", "") and "no other" not in text
    given = relevance()
    given["t07_relevance"] = given["t07_relevance"].tail(1)
    one = answer.answer(Tables(facts=PLAUSIBLE, **given))
    assert "Of shared 40.0% [38.0%, 42.0%] of 512 latents" in one and "no other" not in one and "largest" not in one


def judged(**counts):
    """06_judges of one keyless judge: method=(called, true)."""
    lines = [
        dict(method=m, judge="keyless", captioned=c, n_assessed=200, n_error=called, n_truth=true, precision=1.0,
             recall=0.5, f1=0.667, kappa=0.6)
        for m, (called, true) in counts.items() for c in ("all", "captioned", "uncaptioned")
    ]  # fmt: skip
    return pd.DataFrame(lines)


def test_a_judge_of_too_few_features_is_not_scored():
    few = Tables(t06_judges=judged(sae=(1, 2)), facts=PLAUSIBLE)
    text = answer.answer(few)
    assert "too few features to score against the truth: 1 called errors, 2 true" in text and "F1" not in text
    assert "0.667" not in model_judge.judges(few) and "No score stands where fewer than 10" in model_judge.judges(few)
    enough = Tables(t06_judges=judged(sae=(10, 10)), facts=PLAUSIBLE)
    text = answer.answer(enough)
    assert "F1 0.667" in text and "does best" not in text and "0.667" in model_judge.judges(enough)
    assert "of 10 error features of causes that the captions never named it finds 5" in text


def test_judges_beside_each_other_are_not_scored_either_and_without_a_truth_only_counted():
    beside = pd.DataFrame([dict(judge="keyless", reference="truth", n=200, agreement=0.99, kappa=0.654, precision=1.0)])
    for counts, shown in (((1, 2), False), ((10, 12), True)):
        text = model_judge.agreement(Tables(t06_judges=judged(sae=counts), t06_agreement=beside.assign(recall=0.5)))
        assert ("0.654" in text) == shown and "0.990" in text
    text = model_judge.judges(Tables(t06_judges=judged(sae=(3, float("nan")))))
    assert "no truth to check them against" in text and "| sae | keyless | 200 | 3 |" in text and "truly" not in text


@pytest.mark.parametrize(
    ("share", "truly", "said"),
    [(0.35, False, "mixed: at most 35.0%"), (0.85, True, "truly fingers (85.0%"), (0.85, False, "not enriched")],
)
def test_truly_is_said_only_of_features_that_the_truth_calls_so(share, truly, said):
    row = pd.Series({"top_cause": "fingers", "top_cause_share": share, "is_error": truly, "q_bh": 0.0})
    text = findings._true_cause(row)
    assert said in text and ("truly" in text) == truly


def unlabelled(**given):
    facts = {"01_embed": {"labels": "classes", "n_rows": 400, "d_in": 192}} | given.pop("facts", {})
    return Tables(facts=facts, methods=["topk"], **given)


def test_names_mean_nothing_where_the_text_tower_is_at_chance():
    families = [f"class{i}" for i in range(10)]
    frame = pd.DataFrame({"family": ["all", *families], "n_test": [800] + [80] * 10, "zero_shot_family": 0.105})
    text = answer.answer(unlabelled(t01_encoder=frame))
    assert "Names mean nothing here" in text and "10.5% of the test images" in text and "chance is 10.0%" in text
    assert sections.names_by_chance(unlabelled(t01_encoder=frame.assign(zero_shot_family=0.6))) == ""
    assert sections.names_by_chance(unlabelled(t01_encoder=frame.assign(zero_shot_family=float("nan")))) == ""


def test_answer_without_labels_ranks_at_one_l0_and_has_no_headings_inside(tmp_path):
    text = measures.answer(fair_run(tmp_path / "fair"))
    assert "Of `x`, among methods trained to L0 8, topk_8 leaves least" in text
    assert "The tables below hold 4 more, at another L0 or at none aimed at." in text
    assert text.count("leaves least") == 1, "a method and its own variant are no ranking"
    assert not re.search(r"(Purity|Spliced into the encoder)\. ", text) and "**" not in text


def test_fvu_at_different_l0_is_no_ranking():
    frame = pd.DataFrame(
        {"method": ["relu", "relu_l01"], "base": ["relu", "relu_l01"], "target": "x", "l0": [43.0, 22.0]}
    )
    frame = frame.assign(
        l0_target=float("nan"), matched=None, n_latents=64, fvu=[0.02, 0.07], fvu_low=0.0, fvu_high=1.0
    )
    text = measures.answer(Tables(t04_comparison=frame))
    assert "leaves least" not in text
    assert "the FVU, 0.0200 (relu, L0 43.0) to 0.0700 (relu_l01, L0 22.0), is no ranking" in text


def test_monoloss_counts_only_what_the_seeds_settle():
    pairs = pd.DataFrame({"method": list("abcd"), "mono_score_off": 0.5, "mono_score_on": [0.7, 0.51, 0.3, 0.52]})
    pairs["mono_score_apart"] = [True, False, True, False]
    text = measures.monoloss_count(pairs)
    assert "rises for 1 (a), falls for 1 (c), is not settled by the seeds for 2 (b, d)" in text


def test_a_loss_is_never_minus_zero():
    metrics = pd.DataFrame({"method": ["a", "b"], "zero_shot_top1": 0.9, "zero_shot_drop": [-0.04, 3.0]})
    assert "loses 0.0 percentage points (a) to 3.0 (b)" in measures.zero_shot(Tables(t04_metrics=metrics))


def test_an_fvu_above_one_is_said():
    metrics = pd.DataFrame({"method": ["a", "b"], "fvu": [0.5, 3.2], "cknna_rows": 40})
    above, noisy = measures._cautions(metrics)
    assert above.endswith(": b.") and "worse than the mean" in above and "only 40 images" in noisy
    assert measures._cautions(metrics.assign(fvu=0.5, cknna_rows=2000)) == []


def test_rows_that_are_tokens_are_said_with_what_the_ceiling_is():
    facts = {"01_embed": {"labels": "plausibility", "tokens_per_image": 16, "n_rows": 3200, "d_in": 128}}
    reader = Tables(facts=facts, t04_causes=cause_table(a=(0.6,)))
    for text in (answer.answer(reader), causes.section(reader)):
        assert (
            "tokens, 16 per image, and each carries its image's label" in text and "with the mean of the tokens" in text
        )
    assert "| embeddings | 200 images x 16 tokens of 128 |" in sections.run(reader)
    compared = pd.DataFrame({"method": ["a"], "base": ["a"], "target": "x", "l0_target": 8.0, "l0": 8.0, "fvu": 0.1})
    compared = compared.assign(matched="matched", n_latents=64, n_parameters=9, interval="", n_seeds=1)
    metrics = pd.DataFrame({"method": ["a"], "status": "ok"})
    assert "every number here is over tokens, but purity" in measures.coders(
        Tables(facts=facts, t04_comparison=compared, t04_metrics=metrics)
    )


def test_a_vision_run_shows_what_its_coders_learn():
    x = {"layer": "blocks.6", "tokens_per_image": 36, "d_in": 256}
    reader = unlabelled(facts={"02_classify": {"status": "vision", "vision": "alexnet", "x": x}})
    text = sections.run(reader)
    assert "400 images x 36 tokens of 256, after blocks.6" in text and "400 rows of 192 (for names only" in text
    assert "tokens, 36 per image" in answer.answer(reader)


@pytest.mark.parametrize(
    ("facts", "params", "why"),
    [
        ({"01_embed": {"labels": "classes", "pictures": False}}, {}, "`pictures: false`"),
        ({}, {"05_features": {"n_collages": 0}}, "`n_collages: 0`"),
    ],
)
def test_why_there_is_no_collage_is_the_real_reason(facts, params, why, monkeypatch):
    monkeypatch.setattr(findings, "gallery", lambda *args, **kwargs: [])
    assert why in findings.features(unlabelled(facts=facts, params=params))


def test_a_smoke_run_says_so_first():
    assert answer.answer(Tables("demo-smoke", PLAUSIBLE)).startswith("**Answer.** This is a smoke run: its numbers say")
    assert "smoke" not in answer.answer(Tables("demo", PLAUSIBLE))


def test_errors_come_first_then_activation():
    found = [("no_error", 9.0), ("error", 2.0), ("error", 5.0), ("no_error", 1.0)]
    ordered = errors_first([{"verdict": v, "activation": a, "logit_push": -a} for v, a in found])
    assert [(d["verdict"], d["activation"]) for d in ordered] == [
        ("error", 5.0), ("error", 2.0), ("no_error", 9.0), ("no_error", 1.0)
    ]  # fmt: skip


def test_the_viewer_calls_a_cause_true_only_where_the_truth_does():
    record = pd.Series({"top_cause": "fingers", "top_cause_share": 0.35, "is_error": False, "assessed": True})
    assert "commonest cause" in cards.tiles(record) and "true cause" not in cards.tiles(record)
    record["is_error"] = True
    assert "true cause" in cards.tiles(record)
