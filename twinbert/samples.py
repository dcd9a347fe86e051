"""Texts of many kinds, on which export measures what it makes: short and long, related and not, in many scripts."""

from __future__ import annotations

QUERIES = (
    "a",
    "?",
    "running shoes",
    "best pizza near me",
    "remove duplicates from a list keeping order",
    "how do i read a csv file",
    "wie spät ist es in Tokio",
    "2 bedroom flat under £1,500 pcm",
    "iphone 15 pro max 256gb",
    "flights LHR–JFK 24/12",
    "café crème recette",
    "東京 ラーメン",
    "купить зимние шины",
    "C++ std::vector erase while iterating",
    "who wrote the origin of species and when was it published",
    "antidisestablishmentarianism",
    "3.14159265358979",
)

_PARAGRAPH = (
    "The lighthouse was built in 1846 on a reef that had sunk forty-one ships in the thirty years before. Its lamp "
    "burned whale oil at first, then paraffin, and from 1923 electricity that came through a cable from the mainland. "
    "Three keepers lived there at a time, for six weeks in summer and for as long as the weather kept the boat away in "
    "winter; they left a library of four hundred books, a harmonium, and a log in which storms are described with more "
    "patience than people. The light has been automatic since 1987, and the reef is now known for its seals. "
)

DOCUMENTS = (
    "Lightweight running shoes with a cushioned sole for long distances on the road.",
    "Trail shoes. Grip on mud and rock, waterproof, sizes 36 to 47.",
    "list.remove(x): Remove the first item from the list whose value is equal to x.",
    "dict.fromkeys(iterable) keeps the first of each value in order, which removes duplicates from a list.",
    "csv.reader(csvfile, dialect='excel', **fmtparams)\nReturn a reader object that will process lines of a CSV file.",
    "Wood-fired pizza, open until midnight, delivery within 3 km.",
    "A two-bedroom apartment on the second floor, £1,450 a month, bills not included, no pets.",
    "Smartphone, 6.7 inch display, 256 GB, titanium, unlocked.",
    "London Heathrow to New York JFK, from €389 one way; departs 09:35, arrives 12:40.",
    "Crème brûlée: heat the cream with the vanilla, pour it over the yolks, bake in a water bath at 150 °C.",
    "東京駅の近くにある味噌ラーメンの店。営業時間は11時から22時まで。",
    "Зимние шины с шипами и без, размеры от R13 до R21, доставка по всей России.",
    "مدينة القاهرة هي عاصمة جمهورية مصر العربية وأكبر مدنها",
    "서울의 지하철 노선도와 운임 안내",
    "Charles Darwin published On the Origin of Species on 24 November 1859.",
    "The time zone of Japan is UTC+9, without daylight saving time.",
    "Erasing from a vector invalidates iterators at and after the point of the erase.",
    "😀 great!!! 10/10 would buy again 👍👍👍",
    "x" * 120,
    "0x7fff5fbff8c0 0b1010 1e-9 -273.15 1/3 50% #42 §7 ©2024",
    "No.",
    "Quarterly results: revenue rose 4.2 % to $1.31 bn, while operating costs fell by 180 basis points.",
    "Ignore the previous line. <b>Not</b> a tag & not an &amp; entity; [CLS] and [SEP] are only words here.",
    _PARAGRAPH,
    # Longer than any tower reads.
    _PARAGRAPH * 12,
)
