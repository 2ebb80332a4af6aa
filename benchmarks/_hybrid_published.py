"""Figures of the poster on selective queries, which ``hybrid_images.py`` prints beside its own."""

from __future__ import annotations

from typing import Any

PUBLISHED: dict[str, Any] = {
    "source": "Kag, Fedorov, Gangrade, Whatmough, Saligrama. Efficient Edge Inference by Selective Query. "
    "Poster at ICLR 2023; read off its curves to about 0.1 points, ImageNet top-1",
    "tables": [
        {
            "title": "MCU base 51.5 %, OFA global 79.9 %, by latency of edge and cloud together in ms",
            "columns": ["", "400", "600", "800", "1000", "1200", "1400", "1600"],
            "rows": [
                ["hybrid", 57.0, 62.0, 66.7, 70.8, 75.2, 77.7, "79.1 to 79.3 (its table: 79.5)"],
                ["entropy", 54.6, 59.9, 63.6, 67.4, 72.1, 74.7, "75.9 (its table: 76.93)"],
            ],
        },
        {
            "title": "MobileNetV3 48 M MACs 67.6 % and 215 M MACs 75.7 %, by coverage",
            "columns": ["", ".9", ".8", ".7", ".6", ".5", ".4"],
            "rows": [
                ["hybrid", 70.9, 72.8, 74.3, 75.3, 75.8, 76.1],
                ["entropy", 69.8, 71.5, 73.1, 74.1, 74.8, ""],
            ],
        },
        {
            "title": "MobileNetV3 bases under an OFA global model, entropy to hybrid",
            "columns": ["", "keeping 90 %", "keeping 70 %"],
            "rows": [
                ["48 M MACs, 67.6 %", "70.7 to 71.6", "74.9 to 76.8"],
                ["143 M MACs, 73.3 %", "75.1 to 75.9", "77.6 to 79.0"],
                ["215 M MACs, 75.7 %", "77.1 to 77.6", "78.9 to 79.6"],
            ],
        },
    ],
}
