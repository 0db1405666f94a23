"""Names of the catalogue -> classes of pytorch-metric-learning; one literal table for each family."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from raydml.losses import corrected

LOSSES: dict[str, Any] = {
    "angular": losses.AngularLoss,
    "arc_face": corrected.ArcFaceLoss,
    "circle": losses.CircleLoss,
    "contrastive": losses.ContrastiveLoss,
    "cos_face": losses.CosFaceLoss,
    "fast_ap": losses.FastAPLoss,
    "generalized_lifted_structure": losses.GeneralizedLiftedStructureLoss,
    "histogram": corrected.HistogramLoss,
    "intra_pair_variance": losses.IntraPairVarianceLoss,
    "large_margin_softmax": corrected.LargeMarginSoftmaxLoss,
    "lifted_structure": losses.LiftedStructureLoss,
    "margin": losses.MarginLoss,
    "multi_similarity": losses.MultiSimilarityLoss,
    "n_pairs": losses.NPairsLoss,
    "nca": corrected.NCALoss,
    "normalized_softmax": losses.NormalizedSoftmaxLoss,
    "nt_xent": corrected.NTXentLoss,
    "p2s_grad": corrected.P2SGradLoss,
    "pnp": losses.PNPLoss,
    "proxy_anchor": losses.ProxyAnchorLoss,
    "proxy_nca": corrected.ProxyNCALoss,
    "ranked_list": losses.RankedListLoss,
    "signal_to_noise_ratio_contrastive": losses.SignalToNoiseRatioContrastiveLoss,
    "smooth_ap": corrected.SmoothAPLoss,
    "soft_triple": losses.SoftTripleLoss,
    "sphere_face": corrected.SphereFaceLoss,
    "sub_center_arc_face": corrected.SubCenterArcFaceLoss,
    "sup_con": losses.SupConLoss,
    "threshold_consistent_margin": losses.ThresholdConsistentMarginLoss,
    "triplet_margin": losses.TripletMarginLoss,
    "tuplet_margin": corrected.TupletMarginLoss,
}

MINERS: dict[str, Any] = {
    "angular": miners.AngularMiner,
    "batch_easy_hard": miners.BatchEasyHardMiner,
    "batch_hard": miners.BatchHardMiner,
    "distance_weighted": miners.DistanceWeightedMiner,
    "hdc": miners.HDCMiner,
    "multi_similarity": miners.MultiSimilarityMiner,
    "pair_margin": miners.PairMarginMiner,
    "triplet_margin": miners.TripletMarginMiner,
    "uniform_histogram": miners.UniformHistogramMiner,
}

DISTANCES: dict[str, Any] = {
    "cosine": distances.CosineSimilarity,
    "dot_product": distances.DotProductSimilarity,
    "euclidean": distances.LpDistance,
    "lp": distances.LpDistance,
    "manhattan": distances.LpDistance,
    "snr": distances.SNRDistance,
}

REDUCERS: dict[str, Any] = {
    "avg_non_zero": reducers.AvgNonZeroReducer,
    "class_weighted": reducers.ClassWeightedReducer,
    "divisor": reducers.DivisorReducer,
    "mean": reducers.MeanReducer,
    "per_anchor": reducers.PerAnchorReducer,
    "sum": reducers.SumReducer,
    "threshold": reducers.ThresholdReducer,
}

REGULARIZERS: dict[str, Any] = {
    "center_invariant": regularizers.CenterInvariantRegularizer,
    "lp": regularizers.LpRegularizer,
    "regular_face": regularizers.RegularFaceRegularizer,
    "sparse_centers": regularizers.SparseCentersRegularizer,
    "zero_mean": regularizers.ZeroMeanRegularizer,
}
