"""Pools of names that fill the generated databases: people, titles, places, companies, products, codes."""

from __future__ import annotations

from random import Random

# Each entry: (first halves, second halves, separator). Halves are joined, so a pool has len(first) * len(second) names.
_HALVES: dict[tuple[str, str], tuple[str, str, str]] = {
    ("person", "en"): (
        "Anna Ben Clara David Ella Frank Grace Henry Ivy Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor",
        "Adams Baker Clark Davis Evans Foster Gray Hill Irwin Jones King Lopez Moore Nash Owens Price Reed Stone",
        " ",
    ),
    ("person", "zh"): ("王 李 张 刘 陈 杨 赵 黄 周 吴 徐 孙 马 朱", "伟 芳 娜 敏 静 强 磊 军 洋 勇 艳 杰 涛 明", ""),
    ("title", "en"): (
        "Silent Golden Broken Hidden Last First Blue Lost Bright Cold Wild Quiet Red New",
        "River Garden Road Letter Winter Mirror Ocean Dream Forest Light Stone Journey Song Door",
        " ",
    ),
    ("title", "zh"): (
        "金色 远方 夏夜 雨中 无声 故乡 清晨 遥远 春天 月下",
        "山谷 来信 河流 花园 归途 海洋 星空 旅程 窗口 歌声",
        "",
    ),
    ("place", "en"): (
        "Oak Maple River Hill Sun Lake North South Green Stone Silver West",
        "Park Field Point House Bridge Grove View Gate Town Harbor Ridge Court",
        " ",
    ),
    ("place", "zh"): ("东湖 南山 西岭 北河 青云 金沙 长安 白马 红星 龙泉", "园 镇 阁 庄 苑 里 坊 台 洲 湾", ""),
    ("company", "en"): (
        "Nova Apex Delta Orion Vista Prime Metro Lumen Terra Zenith Atlas Boreal",
        "Foods Labs Trade Works Media Systems Energy Motors Bank Group",
        " ",
    ),
    ("company", "zh"): (
        "华星 金河 天宇 海川 东方 新元 宏达 瑞丰 安泰 恒通",
        "食品 科技 贸易 电子 传媒 实业 能源 化工",
        "",
    ),
    ("product", "en"): (
        "Alpha Bravo Comet Dune Echo Flint Gamma Helix Ion Jade Kite Lyra",
        "10 20 30 40 50 60 70 80",
        " ",
    ),
    ("product", "zh"): ("星云 晨光 飞鸟 蓝海 白鹭 雪松 远航 青竹 火石 银河", "A1 B2 C3 D4 E5 F6 G7 H8", ""),
    ("code", "en"): ("A B C D E F G H K M", "11 24 37 45 52 68 73 86 90 99", ""),
    ("code", "zh"): ("A B C D E F G H K M", "11 24 37 45 52 68 73 86 90 99", ""),
}

_SHARED: dict[str, str] = {
    "@city": "Paris/巴黎, London/伦敦, Berlin/柏林, Rome/罗马, Tokyo/东京, Oslo/奥斯陆",
    "@country": "France/法国, Germany/德国, Italy/意大利, Spain/西班牙, Japan/日本, Brazil/巴西",
    "@color": "Red/红色, Blue/蓝色, Green/绿色, Black/黑色, White/白色",
}

LABEL_KINDS = frozenset(kind for kind, _ in _HALVES)


def names(kind: str, language: str, count: int, rng: Random) -> list[str]:
    """``count`` different names of this kind, in random order.

    Args:
        kind: one of ``LABEL_KINDS``.
        language: "en" or "zh".
        count: at most the size of the pool (at least 80).
    """
    first, second, separator = _HALVES[kind, language]
    pool = [f"{a}{separator}{b}" for a in first.split() for b in second.split()]
    return rng.sample(pool, count)


def choices(spec: str) -> dict[str, tuple[str, ...]]:
    """The values of a category column by language, from "@pool" or "Fantasy/奇幻, Crime/悬疑"."""
    pairs = [entry.strip().split("/") for entry in _SHARED.get(spec, spec).split(",")]
    return {"en": tuple(pair[0] for pair in pairs), "zh": tuple(pair[1] for pair in pairs)}
