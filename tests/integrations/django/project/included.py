"""The project's own pages, and the API among them."""

from django.urls import include, path

from project.urls import urlpatterns as own

urlpatterns = [path("oneai/", include("oneai_middleware.integrations.django.urls")), *own]
