"""Binds the calls that push_cvat makes to the signatures of the real SDK, and builds its request models."""

import inspect
import json
import sys

from cvat_sdk import exceptions, make_client, models
from cvat_sdk.core.proxies.projects import Project, ProjectsRepo
from cvat_sdk.core.proxies.tasks import TasksRepo

labels = json.loads(sys.argv[1])
inspect.signature(make_client).bind("http://x", access_token="t")
project = models.ProjectWriteRequest(
    name="p", labels=[models.PatchedLabelRequest(**label) for label in labels]
)
task = models.TaskWriteRequest(name="p step 1", project_id=3)
inspect.signature(ProjectsRepo.create).bind(None, project)
inspect.signature(ProjectsRepo.list).bind(None)
inspect.signature(Project.get_labels).bind(None)
inspect.signature(Project.get_tasks).bind(None)
inspect.signature(TasksRepo.create_from_data).bind(
    None, task, ["images.zip"], data_params={}, annotation_path="a.xml", annotation_format="CVAT 1.1"
)
assert issubclass(exceptions.ApiException, Exception) and issubclass(exceptions.CvatSdkException, Exception)
print(json.dumps([label.to_dict()["name"] for label in project.labels]))
