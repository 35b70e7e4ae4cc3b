"""What stands in for `catalogue_items` and `catalogue_map` where they are not there yet."""

import importlib
import sys
import types


class TitleSearch:
    def __init__(self, catalogue, items):
        self.catalogue = catalogue

    def find(self, query, limit):
        pairs = zip(self.catalogue.titles[1:], self.catalogue.raw_ids[1:], strict=True)
        return [{"title": t, "item": i} for t, i in pairs if query.lower() in t.lower()][:limit]


class SharedItems:
    def __init__(self, model, store, *, prepare=lambda changes: None):
        self.items = model.items

    def add(self, items):
        self.items.add(items)
        return self.items.version

    def remove(self, titles):
        self.items.remove(titles)
        return self.items.version

    def follow(self):
        return False


class CatalogueMap:
    def __init__(self, model):
        self.catalogue = model.catalogue

    def points(self):
        titles = self.catalogue.titles[1:]
        points = [(n % 12 / 6 - 1, n // 12 / 6 - 1) for n in range(len(titles))]
        return {
            "points": points,
            "titles": titles,
            "categories": [row[0] for row in self.catalogue.item_categories[1:].tolist()],
        }

    def place(self, embeddings):
        return 0.25, -0.5


def install():
    for name, things in {"catalogue_items": (TitleSearch, SharedItems), "catalogue_map": (CatalogueMap,)}.items():
        full = f"user_llm.serving.{name}"
        try:
            module = importlib.import_module(full)
        except ModuleNotFoundError:
            module = sys.modules[full] = types.ModuleType(full)
        for thing in things:
            if not hasattr(module, thing.__name__):
                setattr(module, thing.__name__, thing)
