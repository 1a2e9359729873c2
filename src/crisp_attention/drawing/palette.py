"""The colours of all pages and figures, light and dark. Series have those of Okabe and Ito.

Figures are drawn in the light ones; where a page shows them, each becomes a variable of its style sheet.
"""

INK, QUIET, LINE, PANEL = "#16191d", "#5b6470", "#d9dde3", "#ffffff"
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#56b4e9",
    "#cc79a7",
)

LIGHT = {
    "page": "#f6f7f9",
    "panel": PANEL,
    "ink": INK,
    "quiet": QUIET,
    "line": LINE,
    "blue": BLUE,
    "vermillion": VERMILLION,
    "green": GREEN,
    "orange": ORANGE,
    "sky": SKY,
    "purple": PURPLE,
    "hatch": "#c3c9d1",
    # the series colours as text need more contrast
    "better": "#00614a",
    "worse": "#a84300",
}
DARK = {
    "page": "#0f1216",
    "panel": "#171b21",
    "ink": "#e8ebef",
    "quiet": "#9aa4b0",
    "line": "#2c333c",
    "blue": "#58a6e8",
    "vermillion": "#f5833a",
    "green": "#2fc79c",
    "orange": "#f0b429",
    "sky": "#8fd0f5",
    "purple": "#e39cc3",
    "hatch": "#39424d",
    "better": "#43d3a9",
    "worse": "#ff9d5c",
}
VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}


def style_sheet() -> str:
    """The colours as variables of a page's style, dark where the reader prefers dark mode."""
    light, dark = (
        " ".join(f"--{name}: {colour};" for name, colour in each.items()) for each in (LIGHT, DARK)
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )
