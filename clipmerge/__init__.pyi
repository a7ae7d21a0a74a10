"""Types of the public names, which `__init__.py` imports when they are first used."""

from clipmerge.api._write import MergeResult as MergeResult
from clipmerge.api.apply import apply as apply
from clipmerge.api.callback import RobustMergeCallback as RobustMergeCallback
from clipmerge.api.evaluate import EvaluateResult as EvaluateResult
from clipmerge.api.evaluate import evaluate as evaluate
from clipmerge.api.inspect import InspectResult as InspectResult
from clipmerge.api.inspect import inspect as inspect
from clipmerge.api.merge import merge as merge
from clipmerge.api.merge import plan as plan
from clipmerge.api.merge_models import merge_models as merge_models
from clipmerge.api.sweep import SweepResult as SweepResult
from clipmerge.api.sweep import sweep as sweep
from clipmerge.errors import CheckpointError as CheckpointError
from clipmerge.errors import ClipmergeError as ClipmergeError
from clipmerge.errors import DataError as DataError
from clipmerge.errors import HubError as HubError
from clipmerge.errors import OutputError as OutputError
from clipmerge.errors import UsageError as UsageError
from clipmerge.errors import VerdictError as VerdictError
from clipmerge.planning.measurements import Measurements as Measurements
from clipmerge.planning.plan import Plan as Plan
from clipmerge.planning.recipe import Recipe as Recipe
from clipmerge.planning.recipe import load_recipe as load_recipe
from clipmerge.progress import Progress as Progress
from clipmerge.publish.push import PushResult as PushResult
from clipmerge.publish.push import push as push

__version__: str
