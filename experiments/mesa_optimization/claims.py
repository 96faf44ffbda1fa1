"""The claims of the paper, fixed before their first run at full size, and what is derived beyond them."""

from typing import Any

from experiments.claims import Claim
from experiments.mesa_optimization import references

_PAPER = "Zheng et al. 2024, On Mesa-Optimization in Autoregressively Trained Transformers"
_DERIVED = "derived here"
_EXACT: dict[str, Any] = {"rule": "exact", "reference": 0.0, "test": "deterministic"}
_ROUNDING: dict[str, Any] = {"margin": 1e-9, "margin_reason": "float64 rounding"}
_DECIMALS: dict[str, Any] = {"margin": 1e-9, "margin_reason": "two flows, each integrated to about 1e-10"}
_SAMPLED = "5 %: three times what 10,000 sequences leave, 1.7 % of the mean product, for one training set"
_LIMIT = references.LAWS["Gaussian"].limit(references.DIMENSION, references.LENGTH)
_SMALL_LIMIT = references.LAWS["Gaussian"].limit(references.DIMENSION, references.SMALL_LENGTH)

CLAIMS = (
    Claim(
        "B1",
        "from a diagonal start the flow of all parameters ends in W32 = a I, W12 = b I with ab = kappa1 / (kappa2 + "
        "kappa3 S_T / (T - 2)), all else 0",
        source=f"{_PAPER}, theorem 4.1",
        **_EXACT,
    ),
    Claim(
        "B1-sampled",
        "so does gradient descent on 10,000 sampled Gaussian sequences, where its exact curve has converged",
        source=f"{_PAPER}, theorem 4.1 and section 6",
        rule="equal",
        reference=_LIMIT,
        margin=0.05 * _LIMIT,
        margin_reason=_SAMPLED,
    ),
    Claim(
        "B1-routes",
        "gradient descent on the correlations of the samples is gradient descent on the layer itself",
        source=f"{_DERIVED}: the loss is a quartic polynomial of the parameters",
        primary=False,
        margin=1e-10,
        margin_reason="float64 rounding over the epochs",
        **_EXACT,
    ),
    Claim(
        "B1-scatter",
        "over training sets of 2,000 sequences with d = 3, T = 12 the mean product has mean .1823 and standard "
        "deviation .0079",
        source=f"{_DERIVED}: delta method and Monte Carlo",
        rule="equal",
        reference=references.SCATTER_MEAN,
        margin=0.0015,
        margin_reason="a fifth of the scatter",
        seeds=1200,
        primary=False,
    ),
    Claim(
        "B1-off",
        "on 10,000 Gaussian sequences the largest entry off a diagonal is on average between .001 and .01",
        source=f"{_DERIVED}: what the number of sequences leaves",
        rule="equal",
        reference=sum(references.LARGEST_OFF_DIAGONAL) / 2,
        margin=(references.LARGEST_OFF_DIAGONAL[1] - references.LARGEST_OFF_DIAGONAL[0]) / 2,
        margin_reason="the range of the claim",
        primary=False,
    ),
    Claim(
        "B1s",
        "any i.i.d. coordinates of mean 0 with moments up to order 6 satisfy assumption 4.1, and so theorem 4.1: "
        "also for a skewed law there is no gradient off the diagonals",
        source=f"{_PAPER}, sections 1 and 4",
        expected="refuted",
        expected_reason="the proof drops E[x_r^3 x_s^3], which is the square of the third moment: the gradients off "
        "the diagonals are a b^2 S_T mu3^2 and a^2 b S_T mu3^2",
        **_ROUNDING,
        **_EXACT,
    ),
    Claim(
        "B1s-size",
        "for the law 2 with probability 1/3, else -1, these gradients and the limit are as derived",
        source=f"{_DERIVED}, by two independent methods",
        primary=False,
        margin=1e-9,
        margin_reason="float64 rounding",
        **_EXACT,
    ),
    Claim(
        "B2",
        "at W32 = a I, W12 = b I the gradient of every other entry is 0",
        source=f"{_PAPER}, lemma 5.2",
        **_ROUNDING,
        **_EXACT,
    ),
    Claim(
        "B3",
        "da/dtau = b (c2 - c1 ab), db/dtau = a (c2 - c1 ab) with c1 = (T - 2) kappa2 + S_T kappa3, c2 = (T - 2) kappa1",
        source=f"{_PAPER}, lemma 5.2",
        **_EXACT,
    ),
    Claim(
        "B4",
        "that is the flow of (c2 - c1 ab)^2 / (2 c1), which is not convex and satisfies |grad|^2 >= 2 c1 (a^2 + b^2) "
        "(loss - min), in fact with equality",
        source=f"{_PAPER}, lemmas 5.3 and 5.4; the equality is derived here",
        **_EXACT,
    ),
    Claim(
        "B5",
        "the flow reaches the global minimum from every diagonal start",
        source=f"{_PAPER}, theorem 4.1 and lemma 5.4",
        expected="refuted",
        expected_reason="a0 = -b0 is the stable manifold of the saddle (0, 0), where ab goes to 0 from below: it "
        "fails on a set of measure 0 and holds elsewhere",
        **_EXACT,
    ),
    Claim(
        "B5-saddle",
        "from a0 = -b0 it ends in the saddle (0, 0), and from elsewhere in a minimum",
        source=f"{_DERIVED}: a + b never changes sign",
        primary=False,
        **_EXACT,
    ),
    Claim(
        "B6",
        "the trained layer predicts what one step of gradient descent from 0 on the in-context least-squares "
        "problem, of size ab / (t - 1), predicts",
        source=f"{_PAPER}, corollary 4.1",
        margin=1e-9,
        margin_reason="off the diagonals the end of a flow is not exactly 0",
        **_EXACT,
    ),
    Claim(
        "B7",
        "at d = 5, T = 100 the layer that is trained on Gaussian tokens predicts .2 of the next token on average",
        source=f"{_PAPER}, figures 1b and 2: a line at 0.2",
        rule="equal",
        reference=references.REPORTED_RATIO,
        margin=0.002,
        margin_reason="1 % of the ratio",
        expected="refuted",
        expected_reason="the exact ratio at d = 5, T = 100 is .191905, kappa1 / (kappa2 + kappa3 S_T / 98): .2 is its "
        "limit as T grows",
        primary=False,
    ),
    Claim(
        "B7-finite",
        "it predicts the share ab sigma^2 of it, with the ab of theorem 4.1 at the T of the training, for test "
        "sequences of any length",
        source=f"{_PAPER}, proposition 4.1; the finite value is derived here",
        rule="equal",
        reference=_LIMIT,
        margin=0.05 * _LIMIT,
        margin_reason=_SAMPLED,
    ),
    Claim(
        "B7-limit",
        "that share tends to 1/5 as the training sequences grow: exact flows at T = 50 and 200, extrapolated in S_T "
        "/ (T - 2)",
        source=f"{_PAPER}, proposition 4.1",
        rule="exact",
        reference=0.2,
        margin=1e-8,
        margin_reason="the ends of two flows; T = 100, between them, checks the extrapolation",
        test="deterministic",
    ),
    Claim(
        "B8",
        "assumption 4.2 is necessary and sufficient for recovering the process: R^2 tends to kappa1^2 / (kappa2 m2) "
        "for long sequences, which is 1 exactly where |x_j| is 0 or one number",
        source=f"{_PAPER}, theorem 4.2; its sharp form is derived here",
        margin=1e-7,
        margin_reason="the ends of two flows, T = 50 and 200, extrapolated in S_T / (T - 2)",
        **_EXACT,
    ),
    Claim(
        "B8-sampled",
        "layers that are trained on samples of seven laws explain as much of the population as the formula says",
        source=f"{_DERIVED}: R^2 = ab kappa1 / m2",
        rule="equal",
        reference=0.6,
        margin=0.02,
        margin_reason="a fiftieth of what there is to explain",
        primary=False,
    ),
    Claim(
        "B9",
        "on sparse tokens +-c the product follows its exact curve towards 1/c^2: at epochs 20, 60 and the last of "
        "the figures",
        source=f"{_PAPER}, example 4.1 and figures 1c, 3; the curves are derived here",
        rule="equal",
        reference=1.0,
        margin=0.02,
        margin_reason="2 %: the scatter of a transient over coordinates, whose shares of the sequences differ",
    ),
    Claim(
        "B9-loss",
        "so does the test loss towards 0, in units of the loss of predicting 0",
        source=f"{_PAPER}, figure 1d; the curves are derived here",
        rule="equal",
        reference=0.0014,
        margin=0.00028,
        margin_reason="20 %: coordinates have shares of the sequences that scatter by 2 %, and so have their rates, "
        "and what is left of the loss scatters by 16 %",
        primary=False,
    ),
    Claim(
        "B9-limit",
        "the limit is exact: products 1/c^2 and loss 0 on the samples themselves",
        source=f"{_PAPER}, example 4.1",
        margin=1e-6,
        margin_reason="the end of a flow",
        **_EXACT,
    ),
    Claim(
        "B10",
        "Gaussian, Gamma and Poisson tokens fail assumption 4.2: with signs that make them symmetric, R^2 stays "
        "below 1",
        source=f"{_PAPER}, section 4.2",
        rule="less",
        reference=1.0,
        test="deterministic",
    ),
    Claim(
        "B10-raw",
        "Gamma and Poisson tokens as they are, without random signs, meet assumption 4.1",
        source=f"{_DERIVED}: what comparing them by assumption 4.2 takes for granted ({_PAPER}, section 4.2)",
        expected="refuted",
        expected_reason="their odd moments do not vanish",
        primary=False,
        **_ROUNDING,
        **_EXACT,
    ),
    Claim(
        "B11",
        "with the gradients off the diagonals masked, tokens of ones lead to ab = 1 / (1 + (d - 1) S_T / (T - 2))",
        source=f"{_PAPER}, theorem 4.3",
        **_EXACT,
    ),
    Claim(
        "B11-sampled",
        "so they do on 10,000 sampled sequences",
        source=f"{_PAPER}, theorem 4.3",
        rule="equal",
        reference=references.MASKED_LIMITS[references.DIMENSION, references.LENGTH][0],
        margin=0.01 * references.MASKED_LIMITS[references.DIMENSION, references.LENGTH][0],
        margin_reason="1 %: with tokens of ones the phases alone are random",
        primary=False,
    ),
    Claim(
        "B12",
        "without the mask W32 and W12 become dense with a strong diagonal, and the other blocks stay 0: the limit "
        "that the paper leaves open is a I + alpha (J - I), b I + beta (J - I)",
        source=f"{_PAPER}, proposition 4.2, figure 7; the limits are derived here",
        **_DECIMALS,
        **_EXACT,
    ),
    Claim(
        "B12-sampled",
        "so they do on 10,000 sampled sequences, from three starts",
        source=f"{_PAPER}, figure 7; the numbers are derived here",
        rule="equal",
        reference=-0.0485,
        margin=0.00485,
        margin_reason="a tenth of the entries off the diagonal, a hundredth of the product",
        primary=False,
    ),
    Claim(
        "B13",
        "at sigma = .5, 1, 2, from three starts, the product is that of exact gradient descent at the last epoch of "
        "the paper's figures",
        source=f"{_PAPER}, section 6, figures 1a, 2; the curves are derived here",
        rule="equal",
        reference=_LIMIT,
        margin=0.05 * _LIMIT,
        margin_reason=_SAMPLED,
    ),
    Claim(
        "B13-reported",
        "at that epoch it has reached 1 / (5 sigma^2)",
        source=f"{_PAPER}, section 6, figures 1a, 2: lines at 0.8, 0.2, 0.05",
        rule="equal",
        reference=0.2,
        margin=0.01,
        margin_reason="5 %, as in B13",
        expected="refuted",
        expected_reason="from (.1, .1) the curves are at 95 % and 92 % of their limit for sigma = .5 and 2, and the "
        "limit itself is 4 % below the line at T = 100",
        primary=False,
    ),
    Claim(
        "B14",
        "with d = T = 5 the product follows its exact curves to 9/67, of which it has reached 99 % or all at the end",
        source=f"{_PAPER}, section 6, figure 4",
        rule="equal",
        reference=_SMALL_LIMIT,
        margin=references.MARGIN_SMALL * _SMALL_LIMIT,
        margin_reason="2.1 %: a bias by 10,000 sequences of .4 %, as predicted, and three standard errors of eight "
        "training sets; there are twelve times as many",
        seeds=96,
    ),
    Claim(
        "B15",
        "from Gaussian initial values of all parameters the diagonals keep all but 5 % of W32 and W12",
        source=f"{_PAPER}, section 6, figure 5 (qualitative); the bound of 5 % is ours",
        rule="less",
        reference=0.05,
    ),
    Claim(
        "B15-apart",
        "their limit differs from that of the diagonal start (.1, .1)",
        source=f"{_PAPER}, section 6, figure 5 (qualitative); a tenth of the norm is ours",
        rule="greater",
        reference=0.1,
    ),
    Claim(
        "B15-gauge",
        "but from initial values of .01 and less by signs alone: the sizes of all entries are the same to 5 %",
        source=f"{_DERIVED}: the loss does not see the signs of the columns of W32 and W12",
        rule="less",
        reference=0.05,
        primary=False,
    ),
    Claim(
        "B15-ratio",
        "its test ratio is that of a diagonal start",
        source=f"{_PAPER}, section 6, figure 5 (qualitative)",
        rule="equal",
        reference=0.0,
        margin=0.004,
        margin_reason="2 % of the ratio",
    ),
    Claim(
        "B15-signs",
        "all diagonal entries take the signs of a_j + b_j at the start, on most training sets",
        source=f"{_DERIVED}: a + b never changes sign",
        rule="greater",
        reference=0.5,
        test="binomial",
        primary=False,
    ),
    Claim(
        "B15-exact",
        "the exact flow from dense Gaussian W32 and W12 ends with every diagonal product at the theorem's and its loss",
        source=f"{_DERIVED}; {_PAPER}, section 6 (observed)",
        primary=False,
        **_EXACT,
    ),
    Claim(
        "B15-sparse",
        "the same on sparse tokens: the diagonal keeps all but 5 % of W32",
        source=f"{_PAPER}, section 6, figure 6 (qualitative); the bound of 5 % is ours",
        rule="less",
        reference=0.05,
        expected="refuted",
        expected_reason="entries of W32 off the diagonal have no gradient on one-hot tokens and keep their initial "
        "values: at .1 that is about a fifth of the norm, whatever is trained",
        primary=False,
    ),
    Claim(
        "B15-loss",
        "its test loss on sparse tokens goes to 0 as from a diagonal start: below a thousandth of that of predicting 0",
        source=f"{_PAPER}, section 6, figure 6 (qualitative); the thousandth is ours",
        rule="less",
        reference=0.001,
    ),
    Claim(
        "B15-flat",
        "on sparse tokens no entry of W32 off the diagonal ever moves",
        source=f"{_DERIVED}: products of two coordinates vanish on one-hot tokens",
        primary=False,
        **_EXACT,
    ),
    Claim(
        "B16",
        "the full setting takes less than an hour",
        source=f"{_PAPER}, appendix B.1, on one RTX 3090",
        rule="less",
        reference=3600.0,
        test="deterministic",
        primary=False,
    ),
    Claim(
        "B17",
        "where no coordinate disturbs another (d = 1, or long sequences) K gradient steps, each of its best size, "
        "explain 1 - 1 / C(K + 3/2, K) of Gaussian tokens, and no sizes nearby explain more",
        source=f"{_DERIVED}: the Christoffel function of a Gamma(3/2) law at 0",
        primary=False,
        margin=1e-9,
        margin_reason="float64 rounding of a quadrature",
        **_EXACT,
    ),
    Claim(
        "B17-ratio",
        "there their ratio of prediction to target is 1 - (K + 1) / C(K + 3/2, K): .2, .31, .39, ..., .9 only at K = "
        "175",
        source=f"{_DERIVED}: the Laguerre polynomial that is the best residual",
        primary=False,
        margin=1e-9,
        margin_reason="float64 rounding of a quadrature",
        **_EXACT,
    ),
    Claim(
        "B17-stacked",
        "stacks of linear attention layers that Adam trains as a whole (Gaussian tokens, d = 2, T = 10) explain more "
        "of the median test sequence layer by layer",
        source="beyond the paper; the median, since a few sequences of large tokens decide R^2",
        rule="order",
        reference=0.0,
        primary=False,
    ),
    Claim(
        "B18",
        "with noise in every step, or W uniform among the unitary or the orthogonal matrices, W32 and W12 have the "
        "diagonal product of the best multiples of the identity, c2 / c1 with the expectations of the process",
        source="beyond the paper: symmetry predicts it; the expectations are means over fresh sequences",
        rule="equal",
        reference=1.0,
        margin=0.05,
        margin_reason=_SAMPLED,
        primary=False,
    ),
)
