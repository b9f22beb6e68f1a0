"""What only a simulated market knows of held-out requests: who asked, what could be bought, what pays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from narrows.evaluation.leave_one_out import ANONYMOUS_PREFIX, Cases
from narrows.market_tables import MarketPlan
from narrows.retrieval import Rows
from narrows.simulator import Market, Worth

SAME_VISIT_S = 1800.0
"""An item looked at within this time before still leads on to others."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The market behind the cases: `numbers` int64[item_count] its items' numbers by those of the log.

    For each case `visitors` int64[n], `last` int64[n] the market's item before it or -1, `times` float64[n].
    """

    market: Market
    numbers: NDArray[np.int64]
    visitors: NDArray[np.int64]
    last: NDArray[np.int64]
    times: NDArray[np.float64]

    @staticmethod
    def of(plan: MarketPlan, held: Cases) -> Truth:
        """The truth of held-out events of the plan's tables."""
        market, log = plan.market(), held.log
        numbers = np.asarray([market.item_number(one) for one in log.item_ids.tolist()], np.int64)
        sessions = market.visitors_of(*plan.window)
        names = log.user_ids[log.users[held.positions]].tolist()
        people = [sessions.get(name.removeprefix(ANONYMOUS_PREFIX), name) for name in names]
        before = held.positions - 1
        recent = log.times[held.positions] - log.times[before] <= SAME_VISIT_S
        return Truth(
            market,
            numbers,
            np.asarray([market.user_number(one) for one in people], np.int64),
            np.where(recent, numbers[log.items[before]], -1),
            log.times[held.positions],
        )

    def eligible(self, case: int, rows: Rows) -> NDArray[np.bool_]:
        """Which rows the gate lets pass: offered by then, in stock, sold where the visitor is."""
        items = self.numbers[rows][None]
        visitor, time = self.visitors[case : case + 1], self.times[case : case + 1]
        return np.asarray(self.market.available(visitor, items, time)[0])

    def worth(self, slates: NDArray[np.int32]) -> Worth:
        """What a slate of each case brings; slates int32[n, k] of log items, -1 for an empty place."""
        items = np.where(slates >= 0, self.numbers[slates], -1)
        return self.market.worth(self.visitors, items, self.last, self.times)
