"""The UCSD releases of Amazon reviews: which files they have, where, and what they are called."""

from dataclasses import dataclass

_2018 = (
    "AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl "
    "Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards "
    "Grocery_and_Gourmet_Food Home_and_Kitchen Industrial_and_Scientific Kindle_Store Luxury_Beauty "
    "Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies "
    "Prime_Pantry Software Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games"
)
_2014 = (
    "Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl Cell_Phones_and_Accessories "
    "Clothing_Shoes_and_Jewelry Digital_Music Electronics Grocery_and_Gourmet_Food Health_and_Personal_Care "
    "Home_and_Kitchen Kindle_Store Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden "
    "Pet_Supplies Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games"
)


@dataclass(frozen=True)
class Release:
    """One release.

    Attributes:
      year: 2014 or 2018.
      categories: of products, as its files spell them.
      reviews, reviews_5core, metadata: URLs with the category to be filled in; their last parts are the file names.
      literal_metadata: whether metadata rows are Python literals, not JSON.
    """

    year: int
    categories: tuple[str, ...]
    reviews: str
    reviews_5core: str
    metadata: str
    literal_metadata: bool


_V2 = "https://jmcauley.ucsd.edu/data/amazon_v2"
_V1 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"

RELEASES = (
    Release(
        year=2018,
        categories=tuple(_2018.split()),
        reviews=f"{_V2}/categoryFiles/{{}}.json.gz",
        reviews_5core=f"{_V2}/categoryFilesSmall/{{}}_5.json.gz",
        metadata=f"{_V2}/metaFiles2/meta_{{}}.json.gz",
        literal_metadata=False,
    ),
    Release(
        year=2014,
        categories=tuple(_2014.split()),
        reviews=f"{_V1}/reviews_{{}}.json.gz",
        reviews_5core=f"{_V1}/reviews_{{}}_5.json.gz",
        metadata=f"{_V1}/meta_{{}}.json.gz",
        literal_metadata=True,
    ),
)
