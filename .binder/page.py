"""Write the notebook that Voila shows: the dashboard, over a folder for what is made."""

import json
from pathlib import Path

from diffnb.apps import dashboard_notebook

Path("dashboard.ipynb").write_text(json.dumps(dashboard_notebook(Path("outputs"), "en")), encoding="utf-8")
