"""Prints, as JSON, which file of a directory pip itself would install on each platform.

    python pip_choice.py DIRECTORY PLATFORM...

Its finder can be told any platform's tag; its command line refuses one unless sdists are excluded.
A program of its own, so that pip's modules stay out of the tests' process.
"""

from __future__ import annotations

import json
import sys

from pip._internal.index.collector import LinkCollector
from pip._internal.index.package_finder import PackageFinder
from pip._internal.models.search_scope import SearchScope
from pip._internal.models.selection_prefs import SelectionPreferences
from pip._internal.models.target_python import TargetPython
from pip._internal.network.session import PipSession


def choice(directory: str, platform: str) -> str | None:
    finder = PackageFinder.create(
        link_collector=LinkCollector(
            session=PipSession(),
            search_scope=SearchScope.create([directory], index_urls=[], no_index=True),
        ),
        selection_prefs=SelectionPreferences(allow_yanked=False),
        target_python=TargetPython(platforms=[platform]),
    )
    best = finder.find_best_candidate("freebsd-splice").best_candidate
    return best.link.filename if best else None


if __name__ == "__main__":
    directory, *platforms = sys.argv[1:]
    print(json.dumps({platform: choice(directory, platform) for platform in platforms}))
