"""The names of COCO's twelve metrics, in one table."""

from typing import NamedTuple


class Metric(NamedTuple):
    """One of COCO's metrics."""

    result_key: str  # key in the result of torchmetrics' MeanAveragePrecision
    scope: str  # what it covers, in a few words
    title: str  # full name, as leaderboards on the hub show it


METRICS = {
    "AP": Metric("map", "IoU .50 to .95", "mean average precision (IoU .50:.95)"),
    "AP50": Metric("map_50", "IoU .50", "average precision at IoU .50"),
    "AP75": Metric("map_75", "IoU .75", "average precision at IoU .75"),
    "APs": Metric("map_small", "small objects", "average precision, small objects"),
    "APm": Metric("map_medium", "medium objects", "average precision, medium objects"),
    "APl": Metric("map_large", "large objects", "average precision, large objects"),
    "AR1": Metric("mar_1", "1 box a class", "average recall, 1 detection per class and image"),
    "AR10": Metric("mar_10", "10 boxes", "average recall, 10 detections per class and image"),
    "AR100": Metric("mar_100", "100 boxes", "average recall, 100 detections per class and image"),
    "ARs": Metric("mar_small", "small objects", "average recall, small objects"),
    "ARm": Metric("mar_medium", "medium objects", "average recall, medium objects"),
    "ARl": Metric("mar_large", "large objects", "average recall, large objects"),
}
AP_METRICS = tuple(METRICS)[:6]
CLASS_METRICS = (*AP_METRICS, "AR100")  # reported for each class
LOGGED_METRICS = AP_METRICS[:3]  # logged after each epoch
