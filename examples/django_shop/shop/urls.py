"""The shop's pages; the API needs no line here."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from . import payments, views

urlpatterns = [
    path("", views.show, name="account"),
    path("keys", views.create, name="create"),
    path("keys/<str:id>/revoke", views.revoke, name="revoke"),
    path("signup", views.sign_up, name="signup"),
    path("login", LoginView.as_view(), name="login"),
    path("logout", LogoutView.as_view(), name="logout"),
    path("webhooks/payment", payments.paid),
    path("admin/", admin.site.urls),
]
