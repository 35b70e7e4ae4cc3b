from tests.timelines import make_names, make_table, table, vocabulary

__all__ = ["make_names", "make_table", "table", "vocabulary"]
