"""Tracks: an object of a video keeps its number from frame to frame."""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from sepc_zoo.errors import UserError
from sepc_zoo.inference.detections import DetectionDict

LOW_SCORE = 0.1  # lowest score that continues a track, as in the code of ByteTrack's authors


class TrackError(UserError, RuntimeError):
    """Tracking that is not possible here; the message says what to do."""


class Tracker:
    """ByteTrack (Zhang et al., 2022) of the library ``trackers``, which ignores classes.

    A track begins with two consecutive detections of at least the threshold. Detections with lower
    scores continue it. It ends after a second without detections.

    Raises:
        TrackError: the library is missing.
    """

    def __init__(self, score_threshold: float) -> None:
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            message = f'tracks need trackers: pip install "sepc_zoo[track]" ({error})'
            raise TrackError(message) from error
        self._tracker = ByteTrackTracker(
            track_activation_threshold=score_threshold, high_conf_det_threshold=score_threshold
        )
        self._low = min(LOW_SCORE, score_threshold)
        self._time: float | None = None

    def update(self, detections: DetectionDict, seconds: Fraction | None) -> Tensor:
        """Number the detections of the next frame.

        Args:
            detections: all that the model found, ``boxes (D, 4)`` and ``scores (D,)``.
            seconds: time since the start of the video; a time that is not later than the last one
                begins a new video. None: the frame after the last one.

        Returns:
            ``(D,)`` int64, -1 where a detection has no track.
        """
        import supervision

        now = None if seconds is None else float(seconds)
        if now is not None and self._time is not None and now <= self._time:
            self._tracker.reset()
        self._time = now
        candidates = np.flatnonzero(detections["scores"].cpu().numpy() >= self._low)
        given = supervision.Detections(
            xyxy=detections["boxes"].cpu().float().numpy()[candidates],
            confidence=detections["scores"].cpu().float().numpy()[candidates],
            data={"index": candidates},
        )
        tracked = self._tracker.update(given, timestamp=now)
        ids = torch.full((len(detections["scores"]),), -1, dtype=torch.int64)
        if len(tracked):
            ids[tracked.data["index"]] = torch.as_tensor(tracked.tracker_id)
        return ids
